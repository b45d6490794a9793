"""Trains a custom ResNet-9 on CIFAR-10, and uses what it has trained.

>>> from s10_resnet import TrainConfig, load_model, predict, train
>>> config = TrainConfig(dataset="synthetic", max_train_samples=500, batch_size=50, epochs=1, name="quick")
>>> summary = train(config)  # doctest: +ELLIPSIS
writing to outputs/quick
...
>>> summary["train_images"], summary["parameters"]
(500, 6573120)
>>> model = load_model("outputs/quick")
>>> model.classes[:3]
('circle', 'ring', 'triangle')
>>> from s10_resnet.data.dataset import load_synthetic
>>> test = load_synthetic()[1]
>>> predict(model, test.images[:5]).shape  # or image files
(5, 10)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s10_resnet.config import FindLRConfig, TrainConfig
    from s10_resnet.errors import EnvironmentFailure, InputError, TrainingError
    from s10_resnet.evaluation.predict import predict
    from s10_resnet.models.pretrained import load_model
    from s10_resnet.training.trainer import find_lr, resume, train

__all__ = [
    "EnvironmentFailure",
    "FindLRConfig",
    "InputError",
    "TrainConfig",
    "TrainingError",
    "find_lr",
    "load_model",
    "predict",
    "resume",
    "train",
]

__version__ = "0.2.0"

_MODULES = {
    "config": ("FindLRConfig", "TrainConfig"),
    "errors": ("EnvironmentFailure", "InputError", "TrainingError"),
    "evaluation.predict": ("predict",),
    "models.pretrained": ("load_model",),
    "training.trainer": ("find_lr", "resume", "train"),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: torch takes seconds to import, and a bad flag need not wait for it."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
