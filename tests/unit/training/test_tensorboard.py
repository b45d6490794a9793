import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s10_resnet.errors import InputError
from s10_resnet.training import recipe
from s10_resnet.training import tensorboard as events
from s10_resnet.training.state import EpochRecord
from s10_resnet.training.tensorboard import Events
from tests.runs import small

HISTORY = [
    EpochRecord(epoch, 2.0 / epoch, 0.1 * epoch, 1.5 / epoch, 0.2 * epoch, 0.01 * epoch, 3.0, 1.0, 100.0 + epoch)
    for epoch in (1, 2, 3)
]


def read(folder):
    """What TensorBoard would show."""
    shown = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_each_epoch_is_written_once(tmp_path):
    log = Events(tmp_path / "tensorboard", "val")
    for epochs in (1, 2, 2, 3):
        log.log(HISTORY[:epochs])
    log.close()
    shown = read(tmp_path / "tensorboard")
    expected = {
        "loss/train": "train_loss",
        "loss/val": "eval_loss",
        "accuracy/train": "train_accuracy",
        "accuracy/val": "eval_accuracy",
        "lr": "lr",
        "images_per_second": "images_per_second",
    }
    assert shown.keys() == expected.keys()
    for tag, name in expected.items():
        assert shown[tag] == [(record.epoch, pytest.approx(getattr(record, name))) for record in HISTORY]


def test_they_can_be_seen_while_the_training_goes_on(tmp_path):
    log = Events(tmp_path, "test")
    for epochs in (1, 2, 3):
        log.log(HISTORY[:epochs])
        shown = read(tmp_path)
        assert all(
            [step for step, _ in shown[tag]] == [1, 2, 3][:epochs] for tag in ("loss/train", "images_per_second")
        )
    log.close()


def test_a_run_that_goes_on_supersedes_what_it_wrote_before(tmp_path):
    for epochs in (2, 3):
        log = Events(tmp_path, "test")
        log.log(HISTORY[:epochs])
        log.close()
    assert [step for step, _ in read(tmp_path)["accuracy/test"]] == [1, 2, 3]


def test_nothing_is_made_before_there_is_an_epoch(tmp_path):
    Events(tmp_path / "tensorboard", "test").close()
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.usefixtures("small_parts")
def test_a_training_writes_them_if_it_is_asked_to(tmp_path):
    recipe.train(small(tmp_path, tensorboard=True))
    history = read(tmp_path / "run" / "tensorboard")["accuracy/test"]
    assert [step for step, _ in history] == [1, 2]
    recipe.train(small(tmp_path, name="without"))
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_without_the_library_nothing_is_begun(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"^--tensorboard: needs tensorboard, which is not installed: pip install"):
        recipe.train(small(tmp_path, tensorboard=True))
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError):
        events.require()
