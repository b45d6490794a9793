import copy
import math
import os
import signal

import pytest
import torch
from torch import nn

from s10_resnet.data.dataset import load_synthetic
from s10_resnet.data.loader import AugmentedBatches, Plans, train_loader
from s10_resnet.data.transforms import MEAN, STD
from s10_resnet.errors import TrainingError
from s10_resnet.models.resnet import build_network
from s10_resnet.training import loop as engine
from s10_resnet.training import optim
from s10_resnet.training.state import TrainingState
from s10_resnet.utils import runtime, signals
from s10_resnet.utils import serialization as checkpoint
from tests.outcome import without_clock

SIZES = (16, 16, 16, 2)
SCHEDULE = {"pct_start": 0.2, "anneal": "linear", "div_factor": 25.0, "final_div_factor": 1e4}


class Small(nn.Module):
    """A network with BatchNorm that trains in no time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(48)
        self.linear = nn.Linear(48, 10)

    def forward(self, images):  # uint8 [B, 32, 32, 3]
        x = images.float()[:, ::8, ::8].flatten(1) / 255
        return self.linear(self.norm(x))


def batches_of(split, sizes):
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def state_of(model, cpu, steps, lr=0.01):
    optimizer = optim.adam(model, lr=lr, betas=(0.9, 0.99), weight_decay=0.1)
    scheduler = optim.one_cycle(optimizer, max_lr=lr, total_steps=steps, **SCHEDULE)
    return TrainingState(model, optimizer, scheduler, cpu)


def fitted(split, cpu, state, epochs=2, sizes=SIZES, batches=None, watch=iter):
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    left = (batches_of(split, list(sizes)) * epochs)[state.step :] if batches is None else batches
    criterion = nn.CrossEntropyLoss()
    return engine.fit(
        state,
        left,
        criterion,
        lambda: engine.evaluate(state.model, images, labels, criterion, cpu),
        epochs=epochs,
        steps_per_epoch=len(sizes),
        watch=watch,
    )


def test_predict_equals_the_network_image_by_image(split, cpu):
    model = Small()
    images = torch.from_numpy(split.images)
    logits = engine.predict(model, images, cpu, batch_size=16)
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(logits, expected)


def test_evaluation_leaves_the_network_as_it_is(split, cpu):
    model = Small().train()
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    loss, accuracy, kept = engine.evaluate(model, images, labels, nn.CrossEntropyLoss(), cpu)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(images)
    torch.testing.assert_close(kept, logits)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_training_equals_a_plain_torch_loop(split, cpu):
    model = Small()
    reference = copy.deepcopy(model)
    list(fitted(split, cpu, state_of(model, cpu, 8)))

    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    lrs = optim.planned_lrs(max_lr=0.01, total_steps=8, **SCHEDULE)
    for lr, (images, labels) in zip(lrs, batches_of(split, [16, 16, 16, 2]) * 2, strict=True):
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        nn.functional.cross_entropy(reference.train()(images), labels).backward()
        adamw.step()
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_records_tell_each_epoch(split, cpu):
    model = Small()
    state = state_of(model, cpu, 12)
    records = list(fitted(split, cpu, state, epochs=3))
    assert state.history == records
    assert [record.epoch for record in records] == [1, 2, 3]
    assert records[-1].train_loss < records[0].train_loss
    lrs = optim.planned_lrs(max_lr=0.01, total_steps=12, **SCHEDULE)
    assert [record.lr for record in records] == pytest.approx([lrs[3], lrs[7], lrs[11]])
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    loss, accuracy, logits = engine.evaluate(model, images, labels, nn.CrossEntropyLoss(), cpu)
    assert torch.equal(state.logits, logits)
    assert (records[-1].eval_loss, records[-1].eval_accuracy) == (loss, accuracy)
    for record in records:
        assert record.images_per_second == pytest.approx(50 / record.train_seconds)


def test_every_epoch_sees_all_its_batches_and_watch_sees_every_step(split, cpu):
    seen = []

    def watch(steps):
        for totals in steps:
            seen.append(totals.images)
            yield totals

    records = fitted(split, cpu, state_of(Small(), cpu, 8), watch=watch)
    next(records)
    assert seen == [16, 32, 48, 50]  # a record comes as soon as its epoch ends
    list(records)
    assert seen == [16, 32, 48, 50] * 2


class CutError(Exception):
    pass


@pytest.mark.parametrize("cut", range(9))
def test_a_state_saved_after_any_step_goes_on_to_the_same_bits(split, cpu, tmp_path, cut):
    whole = state_of(Small(), cpu, 8)
    begun = state_of(copy.deepcopy(whole.model), cpu, 8)
    list(fitted(split, cpu, whole))

    def until_cut(steps):
        for totals in steps:
            yield totals
            if begun.step == cut:
                raise CutError

    if cut:
        with pytest.raises(CutError):
            list(fitted(split, cpu, begun, watch=until_cut))
    checkpoint.save(tmp_path / "state.pt", begun.state_dict())
    torch.manual_seed(1)  # whatever the process that goes on begins with
    resumed = state_of(Small(), cpu, 8)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    records = list(fitted(split, cpu, resumed))
    assert [record.epoch for record in records] == ([1, 2] if cut <= 4 else [2])  # the record of 4 had not been made
    assert without_clock(resumed.state_dict()) == without_clock(whole.state_dict())


def poisoned(split, step):
    """Batches of which one makes the loss NaN: a label smoothing of pixels cannot, so a NaN weight does it."""
    batches = batches_of(split, list(SIZES)) * 2
    images, labels = batches[step - 1]
    batches[step - 1] = (torch.full(images.shape, float("nan")), labels)
    return batches


@pytest.mark.parametrize(("step", "epoch", "step_of_epoch"), [(1, 1, 1), (3, 1, 3), (6, 2, 2)])
def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_step(split, cpu, step, epoch, step_of_epoch):
    state = state_of(Small(), cpu, 8)
    before = []

    def watch(steps):
        for totals in steps:
            before[:] = [copy.deepcopy(state.optimizer.state_dict()), copy.deepcopy(list(state.model.parameters()))]
            yield totals

    before[:] = [copy.deepcopy(state.optimizer.state_dict()), copy.deepcopy(list(state.model.parameters()))]
    with pytest.raises(TrainingError, match=f"^epoch {epoch}, step {step_of_epoch}: the loss is no longer a finite"):
        list(fitted(split, cpu, state, batches=poisoned(split, step), watch=watch))
    assert state.step == step - 1
    assert len(state.history) == epoch - 1
    assert without_clock(state.optimizer.state_dict()) == without_clock(before[0])
    assert all(torch.equal(now, then) for now, then in zip(state.model.parameters(), before[1], strict=True))


def test_a_device_that_is_not_waited_for_leaves_the_weights_alone_all_the_same(split, cpu, monkeypatch):
    """What happens on a GPU, where the loss is not read before the epoch's end: `found_inf` has to hold the update."""
    state = state_of(Small(), cpu, 8)
    checks, weights = [], []

    def check():  # a device that answers when the epoch is over
        checks.append(state.totals.failed_step)
        if len(checks) > 4:
            TrainingState.check(state)

    def watch(steps):
        for totals in steps:
            weights.append(state.model.linear.weight.detach().clone())
            yield totals

    monkeypatch.setattr(state, "check", check)
    with pytest.raises(TrainingError, match=r"^epoch 1, step 3:"):
        list(fitted(split, cpu, state, batches=poisoned(split, 3), watch=watch))
    assert checks == [0, 0, 3, 3, 3]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[3])  # nor by the sound batch after it


def test_an_evaluation_that_is_no_number_stops_too(split, cpu):
    state = state_of(Small(), cpu, 8)
    batches, criterion = batches_of(split, list(SIZES)) * 2, nn.CrossEntropyLoss()
    evaluate = lambda: (math.nan, 0.9, None)  # noqa: E731
    with pytest.raises(TrainingError, match=r"^epoch 1: the loss of the evaluation"):
        list(engine.fit(state, batches, criterion, evaluate, epochs=2, steps_per_epoch=4))
    assert state.history == []  # and so it is never the best


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_lets_it_end(split, cpu, signum):
    """The signal comes between the forward pass and the update; the state is that of a whole number of steps."""
    state, reference = state_of(Small(), cpu, 8), state_of(Small(), cpu, 8)
    reference.model.load_state_dict(state.model.state_dict())
    cross_entropy, calls = nn.CrossEntropyLoss(), []

    def criterion(logits, labels):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signum)
        return cross_entropy(logits, labels)

    batches = batches_of(split, list(SIZES)) * 2
    with signals.heeded(), pytest.raises(signals.Stopped) as stopped:
        list(engine.fit(state, batches, criterion, None, epochs=2, steps_per_epoch=4))
    assert stopped.value.signum == signum
    assert state.step == 3
    steps = engine.train_steps(reference, batches[:3], cross_entropy)
    assert len(list(steps)) == 3
    assert without_clock(state.state_dict()) == without_clock(reference.state_dict())


def test_checkpoints_do_not_count_as_training_time(split, cpu):
    state = state_of(Small(), cpu, 4)

    def watch(steps):
        for totals in steps:
            totals.seconds -= 100.0  # as a checkpoint of 100 s does it
            yield totals

    (record,) = fitted(split, cpu, state, epochs=1, watch=watch)
    assert record.train_seconds < -300


def test_the_network_learns(cpu):
    """The whole way of the data: 2 epochs of 2,000 drawn images take the network past 80 %."""
    train, test = load_synthetic(2000, 500)
    run = runtime.start("cpu", "auto")
    model = build_network(MEAN, STD)
    plans = Plans(len(train.labels), batch_size=32, epochs=2, seed=0)
    batches = AugmentedBatches(train, crop_padding=4, flip="random", cutout=8)
    optimizer = optim.adam(model, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.3)
    scheduler = optim.one_cycle(optimizer, max_lr=2e-3, total_steps=len(plans), **SCHEDULE)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    *_, last = engine.fit(
        TrainingState(model, optimizer, scheduler, run),
        train_loader(batches, plans, workers=0, pin_memory=False),
        criterion,
        lambda: engine.evaluate(model, images, labels, criterion, run),
        epochs=2,
        steps_per_epoch=plans.steps_per_epoch,
    )
    assert last.eval_accuracy > 0.8
