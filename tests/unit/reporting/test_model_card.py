import json

import pytest
import yaml

from s10_resnet.data.synthetic import CLASSES
from s10_resnet.reporting import model_card
from s10_resnet.training.run_files import read_config
from tests.conftest import REPOSITORY

REAL = REPOSITORY / "results" / "cifar10-24-epochs"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = "$x$ | <b>*_`[a](b)\n# c"


@pytest.fixture
def real():
    summary = json.loads((REAL / "summary.json").read_text())
    summary = {key.replace("test_", "eval_"): value for key, value in summary.items()} | {"eval_split": "test"}
    return summary, read_config(REAL)


def written(folder, summary, config, classes=NAMES):
    model_card.write_model_card(folder / "MODEL_CARD.md", summary, config, classes)
    return (folder / "MODEL_CARD.md").read_text()


def rows(text):
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name.strip(): value.strip() for name, value in lines}


def metadata(text):
    before, head, _ = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(head)


def test_it_says_what_the_summary_says(real, tmp_path):
    summary, config = real
    summary |= {"best_eval_accuracy": 0.95, "best_epoch": 23}
    (tmp_path / "cifar10").mkdir()
    text = written(tmp_path / "cifar10", summary, config)
    assert "# ResNet-9 on CIFAR-10: cifar10\n" in text
    assert "6,573,120 parameters" in text
    assert ", ".join(NAMES) in text
    table = rows(text)
    assert table["accuracy on the test images, last epoch"] == "94.33 %"
    assert table["accuracy on the test images, best epoch (23)"] == "95.00 %"
    assert table["epochs"] == "24 of 24"
    assert table["training images"] == "50,000"
    assert table["optimizer"] == "Adam, betas 0.9 and 0.99, decoupled weight decay 0.3"
    assert table["learning rate"] == "one cycle (linear), peak 0.005 after 20 % of the steps"
    assert table["augmentation"] == (
        "random crop after reflection padding of 4 pixels, horizontal flip with probability 0.5, cutout of 8 x 8 pixels"
    )
    assert summary["git_commit"] in text
    assert "Its authors name no license" in text
    assert "before its end" not in text
    assert "`s10-evaluate`" in text
    assert "scripts/" not in text


def test_its_head_is_the_metadata_of_a_hub(real, tmp_path):
    summary, config = real
    head = metadata(written(tmp_path, summary, config))
    assert (head["license"], head["datasets"], head["metrics"]) == ("mit", ["cifar10"], ["accuracy"])
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "CIFAR-10", "type": "cifar10", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": pytest.approx(summary["final_eval_accuracy"])}]


def test_held_out_results_are_called_so(real, tmp_path):
    summary, config = real
    text = written(tmp_path, summary | {"eval_split": "val"}, config)
    assert rows(text)["accuracy on the held-out training images, last epoch"] == "94.33 %"
    assert metadata(text)["model-index"][0]["results"][0]["dataset"]["split"] == "val"
    assert "the test images" not in text


def test_augmentation_and_initialization_are_told(real, tmp_path):
    summary, config = real
    config |= {"dirac_init": True, "flip": "alternating"}
    table = rows(written(tmp_path, summary, config))
    assert "horizontal flip of every image in every second epoch, cutout of 8 x 8" in table["augmentation"]
    assert table["initialization"] == "Dirac initialization of the convolutions but the first"


def test_synthetic_data_and_an_interrupted_training_are_named(real, tmp_path):
    summary, config = real
    summary |= {"dataset": "synthetic", "status": "interrupted", "epochs": 3}
    text = written(tmp_path, summary, {**config, "flip": "none", "crop_padding": 0, "cutout_size": 0}, CLASSES)
    assert "**These weights cannot classify photographs.**" in text
    assert "**This run was interrupted before its end.**" in text
    assert (rows(text)["epochs"], rows(text)["augmentation"]) == ("3 of 24", "none")
    assert "CIFAR-10" not in text.split("## Use")[0].split("---\n", 2)[2]


def test_text_from_outside_is_escaped(real, tmp_path):
    summary, config = real[0], real[1] | {"name": ""}
    folder = tmp_path / "a|b_<i>*\udcff\x1b[2J"  # a folder's name need not be Unicode
    folder.mkdir()
    summary["git_commit"] = HOSTILE
    summary["hardware"]["cpu"] = summary["versions"]["torch"] = HOSTILE
    text = written(folder, summary, config, [HOSTILE, "cat"])
    _, body = text.split("---\n", 2)[1:]
    escaped = r"\$x\$ \| \<b\>\*\_\`\[a\](b) \# c"
    assert ": a\\|b\\_\\<i\\>\\*\\\\udcff\\\\x1b\\[2J\n" in body
    assert body.count(escaped) == 4
    assert "<b>" not in body
