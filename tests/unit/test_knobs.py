import dataclasses
import math
from pathlib import Path

import pytest

from s10_resnet import knobs


def knob(field):
    return field.metadata["knob"]


ODD = [None, "1", b"1", [1], (1,), {}, 1j, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("field", "allowed", "fits"),
    [
        (knobs.whole(5, "", low=3), "a whole number of at least 3", lambda n: n >= 3),
        (knobs.whole(5, "", low=3, high=7), "a whole number from 3 to 7", lambda n: 3 <= n <= 7),
        (knobs.whole(0, "", low=3, zero=True), "0 or a whole number of at least 3", lambda n: n == 0 or n >= 3),
        (
            knobs.whole(0, "", low=3, high=7, zero=True),
            "0 or a whole number from 3 to 7",
            lambda n: n in {0, *range(3, 8)},
        ),
        (knobs.or_auto(knobs.whole(0, "", low=0), 0), "a whole number of at least 0, or auto", lambda n: n >= 0),
    ],
)
def test_whole_numbers(field, allowed, fits):
    taken = knob(field)
    assert taken.allowed == allowed
    assert [n for n in range(-3, 12) if taken.accepts(n)] == [n for n in range(-3, 12) if fits(n)]
    assert not any(taken.accepts(value) for value in (*ODD, 5.0, True, False))
    assert taken.parse("5") == 5
    assert taken.accepts("auto") == ("auto" in allowed)


def test_numbers_are_finite():
    taken = knob(knobs.number(0.5, "", "a number", lambda value: -1 <= value <= 1))
    assert [value for value in (-2, -1, -0.5, 0, 1, 1.5) if taken.accepts(value)] == [-1, -0.5, 0, 1]
    assert not any(taken.accepts(value) for value in (*ODD, True, False))
    unbounded = knob(knobs.number(0.5, "", "a number", lambda value: True))
    assert unbounded.accepts(1.7e308)
    assert not any(unbounded.accepts(value) for value in (*ODD, 10**309, -(10**309)))  # no float is so large
    assert (taken.parse("1e-3"), taken.parse("1")) == (0.001, 1.0)


def test_learning_rates():
    taken = knob(knobs.learning_rate(0.1, ""))
    assert [value for value in (-1, 0, 1e-300, 1000, 1000.1) if taken.accepts(value)] == [1e-300, 1000]
    automatic = knob(knobs.or_auto(knobs.learning_rate(0.1, ""), 0.1))
    assert [value for value in ("auto", 0.1, "Auto", "", 0) if automatic.accepts(value)] == ["auto", 0.1]
    assert (automatic.parse("auto"), automatic.parse("0.5")) == ("auto", 0.5)


def test_words():
    taken = knob(knobs.choice("a", "", "a", "b"))
    assert taken.allowed == "one of a, b"
    assert [value for value in ("a", "b", "", "ab", "A", *ODD) if taken.accepts(value)] == ["a", "b"]
    taken = knob(knobs.word("", "", "two letters", lambda text: len(text) == 2))
    assert [value for value in ("ab", "a", *ODD, [1, 2]) if taken.accepts(value)] == ["ab"]


def test_switches():
    taken = knob(knobs.switch(True, ""))
    assert [value for value in (True, False, 0, 1, "true", *ODD) if taken.accepts(value)] == [True, False]


def test_betas():
    taken = knob(knobs.betas((0.9, 0.99), ""))
    assert taken.count == 2
    good = [(0, 0), (0.0, 0.999), (0.9, 0)]
    bad = [(), (0.9,), (0.9, 0.9, 0.9), (0.9, 1), (-0.1, 0.9), (0.9, math.nan), (0.9, "0.9"), (0.9, True), [0.9, 0.9]]
    assert [value for value in (*good, *bad, *ODD) if taken.accepts(value)] == good
    assert taken.revive([0.9, 0.99]) == (0.9, 0.99)
    assert not taken.accepts(taken.revive("ab"))


def test_paths():
    taken = knob(knobs.path(Path("data"), ""))
    assert [value for value in (Path("a"), Path(), "a", *ODD) if taken.accepts(value)] == [Path("a"), Path()]
    assert (taken.parse("a/b"), taken.revive("a/b")) == (Path("a/b"), Path("a/b"))
    with pytest.raises(ValueError, match="no such paths"):
        taken.parse("a\0b")
    for impossible in ("a\0b", "\ud800"):  # whoever gives it: JSON and Python callers, too
        assert not taken.accepts(Path(impossible))
    assert taken.accepts(Path("\udcff"))  # a byte that is no UTF-8, as Python spells it
    assert not taken.accepts(taken.revive(["a"]))


def test_a_path_that_need_not_be_given():
    taken = knob(knobs.path_or_none("", "a file"))
    assert [value for value in (None, Path("a"), *ODD[1:]) if taken.accepts(value)] == [None, Path("a")]
    assert knobs.path_or_none("").default is None


def test_several_paths():
    taken = knob(knobs.paths("", "IMAGE", "a file"))
    good = [(Path("a"),), (Path("a"), Path("b"))]
    assert [value for value in (*good, (), ("a",), (Path("a\0"),), Path("a"), *ODD) if taken.accepts(value)] == good
    assert (taken.positional, taken.metavar) == (True, "IMAGE")


def test_a_default_can_be_missing():
    field = knobs.path(knobs.REQUIRED, "")
    assert field.default is field.default_factory is dataclasses.MISSING


def test_a_default_can_be_made_anew_each_time():
    assert knobs.path(lambda: Path("a"), "").default_factory() == Path("a")
    assert knobs.path(Path("a"), "").default == Path("a")
