import pytest

from s10_resnet import cli, recipe
from s10_resnet.errors import InputError, TrainingError


def run(*argv):
    return cli.run("train", argv, prog="train.py", description="Trains.")


def test_the_command_gets_the_config(monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "train", seen.append)
    assert run("--epochs", "3") == 0
    assert [config.epochs for config in seen] == [3]


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("--limit 3: must be more"), 2, "train.py: error: --limit 3: must be more\n"),
        (TrainingError("no number"), 1, "train.py: failed: no number\n"),
        (KeyboardInterrupt(), 130, "train.py: interrupted\n"),
    ],
)
def test_each_end_has_its_code_and_one_line(monkeypatch, capsys, raised, code, line):
    def fail(config):
        raise raised

    monkeypatch.setattr(recipe, "train", fail)
    assert run() == code
    assert capsys.readouterr() == ("", line)


def test_a_bug_is_not_hidden(monkeypatch):
    def bug(config):
        raise ValueError("a bug")

    monkeypatch.setattr(recipe, "train", bug)
    with pytest.raises(ValueError, match="a bug"):
        run()
