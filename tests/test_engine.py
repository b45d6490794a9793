import copy
import math

import pytest
import torch
from torch import nn

from s10_resnet import engine, optim, runtime
from s10_resnet.batches import AugmentedBatches, Plans, train_loader
from s10_resnet.data import load_synthetic
from s10_resnet.model import build_network
from s10_resnet.transforms import MEAN, STD

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


def fitted(split, cpu, model, epochs=2, sizes=(16, 16, 16, 2), lr=0.01):
    optimizer = optim.adam(model, lr=lr, betas=(0.9, 0.99), weight_decay=0.1)
    scheduler = optim.one_cycle(optimizer, max_lr=lr, total_steps=epochs * len(sizes), **SCHEDULE)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    batches = batches_of(split, list(sizes)) * epochs
    return list(
        engine.fit(model, batches, images, labels, optimizer, scheduler, nn.CrossEntropyLoss(), cpu, epochs=epochs)
    )


def test_totals_are_means_over_images_also_with_a_ragged_last_batch():
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    totals = engine.Totals(torch.device("cpu"))
    for batch, target in zip(logits.split(16), labels.split(16), strict=True):  # 16, 16, 16, 2
        totals.add(nn.functional.cross_entropy(batch, target), batch, target)
    hits = sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
    assert totals.images == 50
    assert totals.accuracy == hits / 50
    assert totals.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


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
    loss, accuracy = engine.evaluate(model, images, labels, nn.CrossEntropyLoss(), cpu)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(images)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_training_equals_a_plain_torch_loop(split, cpu):
    model = Small()
    reference = copy.deepcopy(model)
    fitted(split, cpu, model)

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
    records = fitted(split, cpu, model, epochs=3)
    assert [record.epoch for record in records] == [1, 2, 3]
    assert records[-1].train_loss < records[0].train_loss
    lrs = optim.planned_lrs(max_lr=0.01, total_steps=12, **SCHEDULE)
    assert [record.lr for record in records] == pytest.approx([lrs[3], lrs[7], lrs[11]])
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    loss, accuracy = engine.evaluate(model, images, labels, nn.CrossEntropyLoss(), cpu)
    assert (records[-1].eval_loss, records[-1].eval_accuracy) == (loss, accuracy)
    for record in records:
        assert record.images_per_second == pytest.approx(50 / record.train_seconds)


def test_every_epoch_sees_all_its_batches_and_watch_sees_every_step(split, cpu):
    model, seen = Small(), []

    def watch(steps):
        for totals in steps:
            seen.append(totals.images)
            yield totals

    optimizer = optim.adam(model, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    scheduler = optim.one_cycle(optimizer, max_lr=0.01, total_steps=8, **SCHEDULE)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    batches = batches_of(split, [16, 16, 16, 2]) * 2
    arguments = (model, batches, images, labels, optimizer, scheduler, nn.CrossEntropyLoss(), cpu)
    records = engine.fit(*arguments, epochs=2, watch=watch)
    next(records)
    assert seen == [16, 32, 48, 50]  # a record comes as soon as its epoch ends
    list(records)
    assert seen == [16, 32, 48, 50] * 2


def test_a_loss_that_is_no_number_reaches_the_record(split, cpu):
    model = Small()
    records = fitted(split, cpu, model, lr=1e30)
    assert not math.isfinite(records[-1].train_loss)


def test_the_network_learns(cpu):
    """The whole way of the data: 2 epochs of 2,000 drawn images take the network past 80 %."""
    train, test = load_synthetic(2000, 500)
    run = runtime.start("cpu", "auto")
    model = build_network(MEAN, STD)
    plans = Plans(len(train.labels), batch_size=32, epochs=2, seed=0)
    batches = AugmentedBatches(train, crop_padding=4, flip=True, cutout=8)
    optimizer = optim.adam(model, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.3)
    *_, last = engine.fit(
        model,
        train_loader(batches, plans, workers=0, pin_memory=False),
        torch.from_numpy(test.images),
        torch.from_numpy(test.labels),
        optimizer,
        optim.one_cycle(optimizer, max_lr=2e-3, total_steps=len(plans), **SCHEDULE),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        run,
        epochs=2,
    )
    assert last.eval_accuracy > 0.8
