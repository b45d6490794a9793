import errno
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from s10_resnet import cli, flags
from s10_resnet.errors import InputError, MachineError, TrainingError
from s10_resnet.training import recipe
from s10_resnet.utils.serialization import CheckpointError
from s10_resnet.utils.signals import Stopped
from tests.conftest import REPOSITORY, handlers

pytestmark = pytest.mark.usefixtures("heard_by_nobody")

ENDS = [
    (InputError("--limit 3: must be more"), 2, "train.py: error: --limit 3: must be more\n"),
    (CheckpointError("--resume a.pt: is damaged"), 2, "train.py: error: --resume a.pt: is damaged\n"),
    (TrainingError("no number"), 1, "train.py: failed: no number\n"),
    (MachineError("no space"), 1, "train.py: failed: no space\n"),
    (OSError(errno.ENOSPC, "No space left", "a.pt"), 1, "train.py: failed: a.pt: No space left; free some space\n"),
    (Stopped(signal.SIGINT), 130, "train.py: interrupted\n"),
    (Stopped(signal.SIGINT, urgent=True), 130, "train.py: interrupted\n"),
    (Stopped(signal.SIGTERM), 143, "train.py: terminated\n"),
]


def run(*argv, command="train"):
    return cli.run(command, argv, prog="train.py")


def fail_with(error):
    def fail(*arguments):
        raise error

    return fail


@pytest.fixture
def calls(monkeypatch):
    """The calls of the recipe, none of which does anything."""
    seen = []
    for name in ("train", "resume", "search_lr"):
        monkeypatch.setattr(recipe, name, lambda *arguments, name=name: seen.append((name, *arguments)))
    return seen


def test_the_command_gets_the_config(calls):
    assert run("--epochs", "3") == 0
    assert run("--seed", "1", command="find_lr") == 0
    assert [(name, config.epochs, config.seed) for name, config in calls] == [("train", 3, 0), ("search_lr", 24, 1)]


def test_each_command_is_a_function_named_as_it(monkeypatch):
    monkeypatch.setattr(cli, "run", lambda name, argv: (name, argv))
    for name in cli.COMMANDS:
        assert getattr(cli, name)(["--flag"]) == (name, ["--flag"])


def test_each_is_a_script_and_an_entry_point():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        points = tomllib.load(file)["project"]["scripts"]
    assert points == {f"s10-{name.replace('_', '-')}": f"s10_resnet.cli:{name}" for name in cli.COMMANDS}
    scripts = {path.stem: path.read_text() for path in (REPOSITORY / "scripts").glob("*.py")}
    assert all(f"sys.exit(cli.{name}())" in scripts[name] for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_an_example_that_is_none_of_bad_input(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(name, ["--help"], prog="tool")
    assert ended.value.code == 0
    command = cli.COMMANDS[name]
    text = capsys.readouterr().out
    assert f"\nexample: tool {command.example}\n" in text
    options = text.split("\noptions:\n")[1].split("\n\n")[0]
    assert re.fullmatch(r"  -h, --help +show this help message and exit", options)  # all others are in a section
    assert all(f"\n{title}:\n" in text for title in command.settings.SECTIONS.values())
    command.settings(**flags.read(command.settings, shlex.split(command.example)))


def test_a_run_goes_on_with_the_flags_that_were_given(calls, tmp_path):
    assert run("--resume", str(tmp_path)) == 0
    assert run("--workers", "2", "--resume", str(tmp_path), "--deterministic") == 0
    assert calls == [("resume", tmp_path, {}), ("resume", tmp_path, {"workers": 2, "deterministic": True})]


def test_only_a_training_goes_on(calls, tmp_path, capsys):
    assert run("--resume", str(tmp_path), command="find_lr") == 2
    assert capsys.readouterr().err.startswith("train.py: error: unrecognized arguments: --resume")
    assert run("--resume", str(tmp_path / "missing")) == 2
    assert capsys.readouterr().err.startswith(f"train.py: error: --resume {tmp_path / 'missing'}: must be ")
    assert calls == []


@pytest.mark.parametrize(("raised", "code", "line"), ENDS)
def test_each_end_has_its_code_and_one_line(monkeypatch, capsys, raised, code, line):
    monkeypatch.setattr(recipe, "train", fail_with(raised))
    assert run() == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("argv", [["--epochs", "0"], ["--epoch", "3"], ["stray"], ["--max-lr", "-1e-3"]])
def test_a_bad_command_line_starts_nothing(calls, capsys, argv):
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("train.py: error: ")
    assert calls == []


@pytest.mark.parametrize("flag", ["--epochs", "--name", "--dataset", "--resume", "--stray", "--deterministic"])
def test_what_was_typed_makes_no_second_line(calls, capsys, flag):
    for text in ("two\nlines", "two\rlines", "\n"):
        assert run(flag, text) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal(monkeypatch, capsys, signum, code):
    monkeypatch.setattr(recipe, "train", lambda config: os.kill(os.getpid(), signum))
    assert run() == code
    assert capsys.readouterr().err == f"train.py: {'interrupted' if signum == signal.SIGINT else 'terminated'}\n"
    for another in (signal.SIGTERM, signal.SIGINT):  # while the process ends
        os.kill(os.getpid(), another)


def test_signals_are_what_they_were_after_any_other_end(monkeypatch):
    before = handlers()
    for end in (lambda config: None, fail_with(InputError("bad")), fail_with(TrainingError("no number"))):
        monkeypatch.setattr(recipe, "train", end)
        run()
        assert handlers() == before


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(recipe, "train", fail_with(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        run()


@pytest.mark.parametrize(("raised", "code", "line"), ENDS)
def test_what_only_one_process_may_have_to_say_it_says_with_its_number(monkeypatch, capsys, raised, code, line):
    monkeypatch.setattr(recipe, "train", fail_with(raised))
    monkeypatch.setenv("RANK", "0")
    assert run() == code
    assert capsys.readouterr() == ("", line)
    monkeypatch.setenv("RANK", "1")
    assert run() == code
    told = "" if isinstance(raised, Stopped) else line.replace("train.py:", "train.py: rank 1:", 1)
    assert capsys.readouterr() == ("", told)


def test_a_bad_flag_is_told_by_the_first_process_alone(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0), ("", 1)):
        monkeypatch.setenv("RANK", rank)
        assert run("--epochs", "0") == 2
        assert capsys.readouterr().err.count("\n") == lines


def test_help_and_a_bad_flag_do_not_wait_for_torch():
    script = "\n".join(
        (
            "import sys",
            "from s10_resnet import cli",
            "code = cli.run('train', ['--epochs', '0'], prog='p')",
            "print(code, 'torch' in sys.modules)",
        )
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert told.stdout == "2 False\n"
    assert told.stderr == "p: error: --epochs 0: must be a whole number from 1 to 10000\n"


def test_no_child_outlives_the_command(monkeypatch):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))

    def leave_one(config):
        child.start()
        raise Stopped(signal.SIGINT, urgent=True)

    monkeypatch.setattr(recipe, "train", leave_one)
    try:
        assert run() == 130
        child.join(10)
        assert child.exitcode == -signal.SIGKILL
    finally:
        child.kill()
