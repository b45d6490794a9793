import numpy as np
import pytest
import torch

from s10_resnet.data.mixing import Mix, unmixed

KEY = (3, 1, 4, 0)
CLASSES = 5


def mixed(kind, images, labels, alpha=1.0, key=KEY, epochs=range(10)):
    return Mix(kind, alpha=alpha, classes=CLASSES, epochs=epochs)(key, images, labels)


@pytest.fixture
def batch():
    """Even images, each of a grey value of its own that is a multiple of its class's share."""
    labels = torch.arange(400) % CLASSES
    return (40 * labels + 20)[:, None, None, None].expand(400, 32, 32, 3).to(torch.uint8).clone(), labels


def parts(targets, labels):
    """The share of an image's own class, and the other class, where there is another one."""
    own = targets.gather(1, labels[:, None])[:, 0]
    rest = targets.scatter(1, labels[:, None], 0.0)
    return own, rest.argmax(1), rest.sum(1) > 0


def test_mixup_blends_pixels_and_labels_in_the_same_proportion(batch):
    images, labels = batch
    result, targets = mixed("mixup", *batch)
    assert (result.dtype, result.shape, targets.shape) == (torch.uint8, images.shape, (400, CLASSES))
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    own, other, two = parts(targets, labels)
    assert two.sum() > 250  # of four in five the partner has another class
    expected = own * (40 * labels + 20) + (1 - own) * (40 * other + 20)
    expected = torch.where(two, expected, 40 * labels + 20)
    assert (result.float() - expected[:, None, None, None]).abs().max() <= 0.5 + 1e-3


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(batch):
    images, labels = batch
    result, targets = mixed("cutmix", *batch)
    own, other, two = parts(targets, labels)
    for i in np.flatnonzero(two):
        changed = (result[i] != images[i]).all(-1)
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        assert changed.sum() == len(rows) * len(columns) > 0  # whole, and nothing else
        assert rows.diff().eq(1).all()
        assert columns.diff().eq(1).all()
        assert (result[i][changed] == 40 * other[i] + 20).all()
        assert own[i].item() == pytest.approx(1 - changed.sum().item() / 1024)
    assert torch.equal(result[~two], images[~two])
    assert torch.equal(targets[~two], torch.nn.functional.one_hot(labels[~two], CLASSES).float())


def test_rectangles_have_the_proportions_of_the_image_and_reach_every_corner(batch):
    images, labels = batch
    images, labels = images[:1].repeat(3000, 1, 1, 1), torch.arange(3000) % 2
    images[1::2] += 100
    result, _ = mixed("cutmix", images, labels)
    changed = (result != images).all(-1)
    assert all(changed[:, y, x].any() for y in (0, 31) for x in (0, 31))
    inside = changed.any((1, 2)) & ~changed[:, [0, 31]].any((1, 2)) & ~changed[:, :, [0, 31]].any((1, 2))
    assert inside.sum() > 100
    assert torch.equal(changed[inside].any(2).sum(1), changed[inside].any(1).sum(1))  # squares, unless they hang over


def test_half_of_an_image_is_a_square_of_22_pixels(batch):
    images = batch[0][:1].repeat(500, 1, 1, 1)
    images[1::2] += 100
    result, _ = mixed("cutmix", images, torch.arange(500) % 2, alpha=100.0)  # shares of a half, by a few hundredths
    sides = (result != images).all(-1).any(2).sum(1)
    assert sides.max() in (22, 24)
    assert 20 < sides[sides > 16].float().median() <= 22
    inside = sides[(result == images).all(-1)[:, [0, 31]].all((1, 2)) & (sides > 0)]
    assert len(inside) > 20
    assert (inside % 2 == 0).all()  # as many pixels on both sides of the centre


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.423), (1.0, 0.289), (8.0, 0.121)])
def test_shares_follow_the_beta_distribution(alpha, spread):
    images, labels = torch.zeros(4000, 2, 2, 3, dtype=torch.uint8), torch.arange(4000) % CLASSES
    own, _, two = parts(mixed("mixup", images, labels, alpha)[1], labels)
    # The standard deviation of Beta(a, a) is 1 / (2 sqrt(2 a + 1)).
    assert own[two].mean().item() == pytest.approx(0.5, abs=0.03)
    assert own[two].std().item() == pytest.approx(spread, abs=0.02)
    assert spread == pytest.approx(0.5 / (2 * alpha + 1) ** 0.5, abs=1e-3)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_draws_are_a_function_of_the_key(batch, kind):
    first = mixed(kind, *batch)
    again = mixed(kind, *batch)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for key in ((4, 1, 4, 0), (3, 2, 4, 0), (3, 1, 5, 0), (3, 1, 4, 1)):
        assert not torch.equal(mixed(kind, *batch, key=key)[1], first[1])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_batch_that_is_mixed_is_not_changed(batch, kind):
    before = [part.clone() for part in batch]
    mixed(kind, *batch)
    assert all(torch.equal(one, other) for one, other in zip(batch, before, strict=True))


def test_outside_its_epochs_a_batch_stays_as_it_is(batch):
    for epoch in range(5):
        result, targets = mixed("mixup", *batch, key=(3, epoch, 4, 0), epochs=range(1, 3))
        assert (result is batch[0]) == (targets is batch[1]) == (epoch not in (1, 2))
    assert unmixed(KEY, *batch) == batch
