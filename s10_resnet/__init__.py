"""Trains a custom ResNet-9 on CIFAR-10, and uses what it has trained.

>>> from s10_resnet import Config, load_model, predict, train
>>> config = Config(dataset="synthetic", limit=500, batch_size=50, epochs=1, name="quick")
>>> summary = train(config)  # doctest: +ELLIPSIS
writing to outputs/quick
...
>>> summary["train_images"], summary["parameters"]
(500, 6573120)
>>> model = load_model("outputs/quick/last.pt")
>>> model.classes[:3]
('circle', 'ring', 'triangle')
>>> from s10_resnet.data.dataset import load_synthetic
>>> test = load_synthetic()[1]
>>> predict(model, test.images[:5]).shape  # or a list of picture files
(5, 10)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s10_resnet.config import Config
    from s10_resnet.errors import InputError, MachineError, TrainingError
    from s10_resnet.evaluation.predict import predict
    from s10_resnet.models.pretrained import load_model
    from s10_resnet.training.recipe import resume, search_lr, train

__all__ = [
    "Config",
    "InputError",
    "MachineError",
    "TrainingError",
    "load_model",
    "predict",
    "resume",
    "search_lr",
    "train",
]

_ROOMS = {
    "Config": "config",
    "InputError": "errors",
    "MachineError": "errors",
    "TrainingError": "errors",
    "load_model": "models.pretrained",
    "predict": "evaluation.predict",
    "resume": "training.recipe",
    "search_lr": "training.recipe",
    "train": "training.recipe",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: torch takes seconds, and a bad flag need not wait for it."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
