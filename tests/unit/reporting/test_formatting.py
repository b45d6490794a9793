import math
from pathlib import Path

import pytest

from s10_resnet.reporting import formatting


def test_a_run_is_called_after_its_folder(tmp_path, monkeypatch):
    (tmp_path / "train-1").mkdir()
    monkeypatch.chdir(tmp_path / "train-1")
    for path in (Path("report.html"), Path("./report.html"), tmp_path / "train-1" / "report.html"):
        assert formatting.run_name(path) == "train-1"


@pytest.mark.parametrize(("fraction", "text"), [(0.94333, "94.33 %"), (0, "0.00 %"), (1, "100.00 %")])
def test_percent(fraction, text):
    assert formatting.percent(fraction) == text
    assert formatting.percent(math.nan) == formatting.percent(math.inf) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 00 s"), (4028, "1 h 07 min")]
)
def test_duration(seconds, text):
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (2000, "2,000 images")])
def test_plural(count, text):
    assert formatting.plural(count, "image") == text


def test_markdown_is_text_in_one_line():
    assert formatting.escape_markdown("a_b *c* `d` [e](f) <g> h|i\n# j") == (
        r"a\_b \*c\* \`d\` \[e\](f) \<g\> h\|i \# j"
    )
    assert formatting.escape_markdown("6,573,120 parameters, 94.33 %") == "6,573,120 parameters, 94.33 %"
