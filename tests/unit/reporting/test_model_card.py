import json

import pytest
import yaml

from s10_resnet.config import Config
from s10_resnet.data.synthetic import CLASSES
from s10_resnet.reporting import model_card as card
from tests.conftest import REPOSITORY

REAL = REPOSITORY / "results" / "cifar10-24-epochs"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def real():
    return json.loads((REAL / "summary.json").read_text()), Config().to_json()


def rows(text):
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name.strip(): value.strip() for name, value in lines}


def test_it_says_what_the_summary_says(real, tmp_path):
    summary, config = real
    summary |= {"best_test_accuracy": 0.95, "best_epoch": 23}
    (tmp_path / "cifar10").mkdir()
    card.write(tmp_path / "cifar10" / "MODEL_CARD.md", summary, config, NAMES)
    text = (tmp_path / "cifar10" / "MODEL_CARD.md").read_text()
    assert "# ResNet-9 on CIFAR-10: cifar10\n" in text
    assert "6,573,120 parameters" in text
    assert ", ".join(NAMES) in text
    table = rows(text)
    assert table["accuracy on the test images, last epoch"] == "94.33%"
    assert table["accuracy on the test images, best epoch (23)"] == "95.00%"
    assert table["epochs"] == "24 of 24"
    assert table["training images"] == "50,000"
    assert table["optimizer"] == "Adam, betas 0.9 and 0.99, decoupled weight decay 0.3"
    assert table["learning rate"] == "one cycle (linear), peak 0.005 at 20%"
    assert table["augmentation"] == (
        "random crop after 4 pixels of reflection, mirror image of half of the images, cutout of 8 x 8 pixels"
    )
    assert summary["git_commit"] in text
    assert "Its authors name no licence" in text
    assert "before its end" not in text


def test_its_head_is_the_metadata_of_a_hub(real):
    summary, config = real
    _, head, _ = card.text("run", summary, config, NAMES).split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["license"], metadata["datasets"], metadata["metrics"]) == ("mit", ["cifar10"], ["accuracy"])
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"name": "CIFAR-10", "type": "cifar10", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": pytest.approx(summary["final_test_accuracy"])}]


def test_held_out_figures_are_called_so(real):
    summary, config = real
    summary = {key.replace("test_", "val_"): value for key, value in summary.items()}
    text = card.text("run", summary, config, NAMES)
    assert rows(text)["accuracy on the held-out training images, last epoch"] == "94.33%"
    assert "split: val" in text
    assert "the test images" not in text


def test_what_is_mixed_and_how_it_began_is_told(real):
    summary, config = real
    config |= {"mix": "cutmix", "mix_from": 0.5, "dirac_init": True, "flip": "alternating", "rotation": 5.0}
    table = rows(card.text("run", summary, config, NAMES))
    assert "every second epoch, rotation by up to 5 degrees, cutout" in table["augmentation"]
    assert table["augmentation"].endswith(", cutmix (alpha 0.2) from 50% to 100% of the epochs")
    assert table["initial weights"] == "convolutions that pass their input on (Dirac)"


def test_a_stand_in_and_an_interrupted_training_are_named(real):
    summary, config = real
    summary |= {"dataset": "synthetic", "status": "interrupted", "epochs": 3}
    text = card.text("run", summary, {**config, "flip": "none", "crop_padding": 0, "cutout": 0}, CLASSES)
    assert "**These weights know nothing of photographs.**" in text
    assert "**This training was interrupted before its end.**" in text
    assert (rows(text)["epochs"], rows(text)["augmentation"]) == ("3 of 24", "none")
    assert "CIFAR-10" not in text.split("## Use")[0].split("---\n", 2)[2]
