import threading
from dataclasses import replace
from multiprocessing import Pipe, active_children
from pathlib import Path

import pytest

from s10_resnet.benchmark import baseline as textbook
from s10_resnet.benchmark import baseline_timer as textbook_timer
from s10_resnet.benchmark.baseline_timer import Asked
from s10_resnet.data import dataset as data
from s10_resnet.errors import MachineError
from s10_resnet.training import session
from tests.runs import note_batches, small

ASKED = Asked("synthetic", Path("nowhere"), 60, 25, 0, "cpu")


@pytest.fixture
def taken(small_parts, monkeypatch):
    """The sizes of the batches that steps are taken with."""
    log = []
    note_batches(monkeypatch, textbook, log.append)
    return log


@pytest.fixture
def ask(taken):
    """The serving end in a thread."""
    ours, theirs = Pipe()

    def serve():
        with pytest.raises(EOFError):
            textbook_timer.serve(theirs, ASKED)

    thread = threading.Thread(target=serve)
    thread.start()

    def asked(stage):
        ours.send(stage)
        assert ours.poll(60)
        return ours.recv()

    yield asked
    ours.close()
    thread.join(60)
    assert not thread.is_alive()


def test_each_stage_does_its_work(ask, taken, monkeypatch):
    monkeypatch.setattr(textbook_timer, "PIPELINE_IMAGES", 70)
    made, get = [], textbook.Pictures.__getitem__
    monkeypatch.setattr(textbook.Pictures, "__getitem__", lambda self, i: made.append(i) or get(self, i))
    assert ask("step") > 0
    assert taken == [25, 25]  # as many as an epoch has whole ones
    made.clear()
    assert ask("step") > 0
    assert made == []  # the batch lies ready
    taken.clear()
    assert ask("epoch") > 0
    assert taken == [25, 25, 10]
    assert sorted(made) == list(range(60))
    made.clear()
    assert ask("pipeline") > 0
    assert made == list(range(25)) * 3  # the fewest batches that come to 70 images
    assert len(taken) == 3


def test_the_images_are_those_of_the_package(small_parts, monkeypatch):
    asked, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *given: asked.append(given) or load(*given))
    seen, pictures = [], textbook.Pictures

    def noted(split, train):
        seen.append(len(split.labels))
        return pictures(split, train=train)

    monkeypatch.setattr(textbook, "Pictures", noted)
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(EOFError):
        textbook_timer.serve(theirs, ASKED)
    assert asked == [("synthetic", Path("nowhere"))]
    assert set(seen) == {60}


def test_a_process_answers_and_is_gone_in_the_end(tmp_path):
    run = session.begin(small(tmp_path, limit=10, batch_size=5))
    with textbook_timer.started(run) as ask:
        (process,) = active_children()
        assert ask("pipeline") > 0
        process.kill()
        with pytest.raises(MachineError, match=r"^the textbook script ended early$"):
            ask("pipeline")
    assert not active_children()


def test_the_textbook_script_keeps_its_workers_where_the_package_needs_none(tmp_path, monkeypatch):
    run = session.begin(small(tmp_path, workers=2))
    monkeypatch.setattr(textbook_timer, "default_workers", lambda device: 7)
    assert textbook_timer.workers(run) == 2
    assert textbook_timer.workers(run._replace(config=replace(run.config, augment_on="device"))) == 7
