from types import SimpleNamespace

import numpy as np
import pytest

from s10_resnet.reporting import figures, plots

METRICS = SimpleNamespace(epoch=1, train_loss=1.0, train_accuracy=0.6, eval_loss=1.2, eval_accuracy=0.5)


@pytest.fixture
def drawn(monkeypatch):
    """What each plot function was called with, by its name; the figures are drawn all the same."""
    calls = {}

    def spied(name, original):
        def spy(*arguments, **keywords):
            calls[name] = (arguments, keywords)
            return original(*arguments, **keywords)

        return spy

    for name in ("plot_curves", "plot_lr_schedule", "plot_images", "plot_confusion_matrix"):
        monkeypatch.setattr(plots, name, spied(name, getattr(plots, name)))
    return calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_plan(tmp_path, drawn, noise_images):
    figures.plot_setup(tmp_path, noise_images, ["cat"] * 20, [0.1, 0.2, 0.1, 0.0], 2, dataset="synthetic")
    assert names(tmp_path) == ["lr_schedule.png", "samples.png"]
    for _, keywords in drawn.values():
        assert keywords["title"].endswith(" (synthetic data)")
    assert drawn["plot_lr_schedule"][1]["steps_per_epoch"] == 2


@pytest.mark.parametrize(("dataset", "target"), [("synthetic", None), ("cifar10", 0.9)])
def test_the_results(tmp_path, drawn, split, dataset, target):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 50)
    probabilities[:30] = 0.95 * np.eye(10)[split.labels[:30]] + 0.005  # the first thirty are correct
    summary = {"dataset": dataset, "eval_split": "val"}
    run = figures.RunData(summary, {}, [METRICS], [0.1], 1, split.images, ["cat"] * 50, split, probabilities)
    figures.plot_results(tmp_path, run)
    assert names(tmp_path) == ["confusion.png", "curves.png", "misclassified.png"]
    for _, keywords in drawn.values():
        assert keywords["title"].endswith(" (synthetic data)") == (dataset == "synthetic")
    assert (drawn["plot_curves"][1]["split"], drawn["plot_curves"][1]["target"]) == ("val", target)

    predicted = probabilities.argmax(1)
    matrix = drawn["plot_confusion_matrix"][0][0]
    for true in range(10):
        for other in range(10):
            expected = sum(t == true and p == other for t, p in zip(split.labels, predicted, strict=True))
            assert matrix[true, other] == expected

    (images, captions), _ = drawn["plot_images"]
    wrong = [i for i in range(50) if predicted[i] != split.labels[i]]
    wrong.sort(key=lambda i: -probabilities[i].max())
    assert len(wrong) == len(captions) > 5
    for i, image, caption in zip(wrong, images, captions, strict=True):
        np.testing.assert_array_equal(image, split.images[i])
        pair = f"{split.classes[predicted[i]]} / {split.classes[split.labels[i]]}"
        assert caption == f"{pair}\n{100 * probabilities[i].max():.0f} %"
