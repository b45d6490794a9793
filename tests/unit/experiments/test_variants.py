import pytest

from s10_resnet.config import Config
from s10_resnet.errors import InputError
from s10_resnet.experiments.variants import AS_GIVEN, expand
from s10_resnet.options import Sweep


def changes(*variants, **settings):
    """Labels, and what each variant changes of the recipe as it is given."""
    base, *others = expand(Sweep(variants=variants, **settings))
    assert base.label == AS_GIVEN
    return {
        label: {name: value for name, value in vars(config).items() if value != getattr(base.config, name)}
        for label, config in others
    }


def test_the_recipe_itself_comes_first():
    ((label, config),) = expand(Sweep(epochs=3, weight_decay=0.1, val_size=7, seed=4, runs=5, name="a-sweep"))
    assert label == AS_GIVEN
    assert config == Config(epochs=3, weight_decay=0.1, val_size=7, seed=4)


def test_a_word_is_a_setting_and_its_values():
    assert changes("max-lr=2e-3,1e-2,auto") == {
        "max-lr=2e-3": {"max_lr": 0.002},
        "max-lr=1e-2": {"max_lr": 0.01},
        "max-lr=auto": {"max_lr": "auto"},
    }


def test_words_together_make_all_combinations_and_apart_they_do_not():
    assert changes("cutout=4,6 flip=alternating,none") == {
        "cutout=4 flip=alternating": {"cutout": 4, "flip": "alternating"},
        "cutout=4 flip=none": {"cutout": 4, "flip": "none"},
        "cutout=6 flip=alternating": {"cutout": 6, "flip": "alternating"},
        "cutout=6 flip=none": {"cutout": 6, "flip": "none"},
    }
    assert changes("cutout=4", "flip=none") == {"cutout=4": {"cutout": 4}, "flip=none": {"flip": "none"}}


def test_every_kind_of_setting_can_be_varied():
    assert changes("dirac-init=yes optimizer-betas=0.8:0.95 batch_size=256 finder-steps=200") == {
        "dirac-init=yes optimizer-betas=0.8:0.95 batch-size=256 finder-steps=200": {
            "dirac_init": True,
            "optimizer_betas": (0.8, 0.95),
            "batch_size": 256,
            "finder_steps": 200,
        }
    }


def test_nothing_is_trained_twice():
    assert changes("max-lr=5e-3,0.005,1e-2", "max-lr=0.01", "dirac-init=no") == {"max-lr=1e-2": {"max_lr": 0.01}}
    assert changes("max-lr=5e-3", max_lr=1e-2) == {"max-lr=5e-3": {"max_lr": 0.005}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "VARIANT '': must be settings such as"),
        ("  ", "VARIANT '  ': must be settings such as"),
        ("max-lr", "VARIANT max-lr: must be NAME=VALUE or NAME=VALUE,VALUE, where NAME is one of epochs, batch-size,"),
        ("cutout=4 stray", "VARIANT stray: must be NAME=VALUE"),
        ("no-such=3", "VARIANT no-such=3: must be NAME=VALUE"),
        ("seed=3", "VARIANT seed=3: must be NAME=VALUE"),
        ("val-size=3", "VARIANT val-size=3: must be NAME=VALUE"),
        ("precision=fp32", "VARIANT precision=fp32: must be NAME=VALUE"),
        ("max-lr=", "--max-lr : must be a number"),
        ("max-lr=1e-3,", "--max-lr : must be a number"),
        ("max-lr=fast", "--max-lr fast: must be a number"),
        ("cutout=99", "--cutout 99: must be a whole number from 0 to 32"),
        ("flip=maybe", "--flip maybe: must be one of random, alternating, none"),
        ("dirac-init=1", "--dirac-init 1: must be true or false"),
        ("optimizer-betas=0.9", "--optimizer-betas 0.9: must be two numbers"),
        ("optimizer-betas=0.9:x", "--optimizer-betas 0.9:x: must be two numbers"),
        ("finder-start-lr=2", "--finder-start-lr 2.0: must be below --finder-end-lr 1.0"),
    ],
)
def test_what_cannot_be_tried_is_named(text, message):
    with pytest.raises(InputError) as caught:
        expand(Sweep(variants=("cutout=4", text)))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
