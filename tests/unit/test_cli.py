import errno
import importlib
import io
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

from s10_resnet import arguments, cli
from s10_resnet.config import FindLRConfig, TrainConfig
from s10_resnet.errors import EnvironmentFailure, InputError, TrainingError
from s10_resnet.training import trainer
from s10_resnet.utils.serialization import CheckpointError
from s10_resnet.utils.signals import ShutdownRequested
from tests.conftest import REPOSITORY, handlers
from tests.runs import failing

pytestmark = pytest.mark.usefixtures("heard_by_nobody")

ENDS = [
    (InputError("--max-train-samples 3: must be more"), 2, "train.py: error: --max-train-samples 3: must be more\n"),
    (CheckpointError("--resume a.pt: is damaged"), 2, "train.py: error: --resume a.pt: is damaged\n"),
    (TrainingError("no number"), 1, "train.py: failed: no number\n"),
    (EnvironmentFailure("no space"), 1, "train.py: failed: no space\n"),
    (OSError(errno.ENOSPC, "No space left", "a.pt"), 1, "train.py: failed: a.pt: No space left; free some space\n"),
    (ShutdownRequested(signal.SIGINT), 130, "train.py: interrupted\n"),
    (ShutdownRequested(signal.SIGINT, urgent=True), 130, "train.py: interrupted\n"),
    (ShutdownRequested(signal.SIGTERM), 143, "train.py: terminated\n"),
]


def run(*argv, command="train"):
    return cli.run(command, argv, prog="train.py")


@pytest.fixture
def calls(monkeypatch):
    """The calls of the functions that commands call, none of which does anything."""
    seen = []
    for name in ("train", "resume", "find_lr"):
        monkeypatch.setattr(trainer, name, lambda *arguments, name=name: seen.append((name, *arguments)))
    return seen


def test_a_command_calls_its_function_with_the_settings(calls):
    assert run("--epochs", "3") == 0
    assert run("--seed", "1", command="find_lr") == 0
    assert calls == [("train", TrainConfig(epochs=3)), ("find_lr", FindLRConfig(seed=1))]


def test_each_command_is_a_function_a_script_and_an_entry_point():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        entry_points = tomllib.load(file)["project"]["scripts"]
    assert entry_points == {f"s10-{name.replace('_', '-')}": f"s10_resnet.cli:{name}" for name in cli.COMMANDS}
    for name in cli.COMMANDS:
        function = getattr(cli, name)
        assert (function.func, function.args) == (cli.run, (name,))
        assert f"sys.exit(cli.{name}())" in (REPOSITORY / "scripts" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_a_valid_example_and_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.run(name, ["--help"], prog="tool")
    assert ended.value.code == 0
    command = cli.COMMANDS[name]
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    assert command.description in " ".join(text.split())
    assert f"\nexample: tool {command.example}\n" in text
    assert ("--resume" in text) == bool(command.resume)
    command.settings(**arguments.parse_args(command.settings, shlex.split(command.example)))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_function_is_there(name):
    """Without a call: an example that needs no weights is run by the tests of its module."""
    module, function = cli.COMMANDS[name].function.split(":")
    module = importlib.import_module(f"s10_resnet.{module}")
    assert callable(getattr(module, function))
    assert not cli.COMMANDS[name].resume or callable(module.resume)


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert re.fullmatch(r"s10-resnet (\d+\.\d+.*|, not installed)\n", capsys.readouterr().out)


def test_resume_gets_the_flags_that_were_given(calls, tmp_path):
    assert run("--resume", str(tmp_path)) == 0
    assert run("--workers", "2", "--resume", str(tmp_path), "--deterministic") == 0
    assert calls == [("resume", tmp_path, {}), ("resume", tmp_path, {"workers": 2, "deterministic": True})]


def test_what_cannot_be_resumed(calls, tmp_path, capsys):
    assert run("--resume", str(tmp_path), command="find_lr") == 2
    assert capsys.readouterr().err.startswith("train.py: error: --resume: ")
    assert run("--resume", str(tmp_path / "missing")) == 2
    assert capsys.readouterr().err.startswith(f"train.py: error: --resume {tmp_path / 'missing'}: must be ")
    assert calls == []


@pytest.mark.parametrize(("raised", "code", "line"), ENDS)
def test_each_end_has_its_code_and_one_line(monkeypatch, capsys, raised, code, line):
    monkeypatch.setattr(trainer, "train", failing(raised))
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
def test_a_signal_has_its_exit_code(monkeypatch, capsys, signum, code):
    monkeypatch.setattr(trainer, "train", lambda config: os.kill(os.getpid(), signum))
    assert run() == code
    assert capsys.readouterr().err == f"train.py: {'interrupted' if signum == signal.SIGINT else 'terminated'}\n"
    for another in (signal.SIGTERM, signal.SIGINT):  # while the process ends
        os.kill(os.getpid(), another)


def test_signal_handlers_are_restored_after_any_other_end(monkeypatch):
    before = handlers()
    for end in (lambda config: None, failing(InputError("bad")), failing(TrainingError("no number"))):
        monkeypatch.setattr(trainer, "train", end)
        run()
        assert handlers() == before


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(trainer, "train", failing(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        run()


@pytest.mark.parametrize(("raised", "code", "line"), ENDS)
def test_other_ranks_say_their_number_and_nothing_of_signals(monkeypatch, capsys, raised, code, line):
    monkeypatch.setattr(trainer, "train", failing(raised))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run() == code
    assert capsys.readouterr() == ("", line)
    monkeypatch.setenv("RANK", "1")
    assert run() == code
    told = "" if isinstance(raised, ShutdownRequested) else line.replace("train.py:", "train.py: rank 1:", 1)
    assert capsys.readouterr() == ("", told)


def test_a_bad_flag_is_told_by_rank_0_alone(monkeypatch, capsys):
    for world_size, rank, lines in (("2", "0", 1), ("2", "1", 0), ("", "1", 1)):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        monkeypatch.setenv("RANK", rank)
        assert run("--epochs", "0") == 2
        assert capsys.readouterr().err.count("\n") == lines


def test_a_bad_flag_does_not_wait_for_torch():
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
    assert told.stderr == "p: error: --epochs 0: must be an integer from 1 to 10000\n"


def test_no_child_outlives_the_command(monkeypatch):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))

    def leave_one(config):
        child.start()
        raise ShutdownRequested(signal.SIGINT, urgent=True)

    monkeypatch.setattr(trainer, "train", leave_one)
    try:
        assert run() == 130
        child.join(10)
        assert child.exitcode == -signal.SIGKILL
    finally:
        child.kill()


def test_bad_variables_of_a_launcher_are_one_line(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert run() == 2
    assert capsys.readouterr().err.startswith("train.py: error: WORLD_SIZE=x: must be an integer")


def test_an_error_line_needs_no_good_stderr(monkeypatch, capsys):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    assert run("--epochs", "\u20ac") == 2
    assert rb"\u20ac" in buffer.getvalue()
    stream.close()
    assert run("--epochs", "0") == 2
    monkeypatch.setattr(sys, "stderr", None)
    assert run("--epochs", "0") == 2
    sys.stderr.close()  # it is os.devnull now
    assert capsys.readouterr().out == ""  # print would fall back on stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_stream_that_a_shell_has_closed(tmp_path, closed):
    script = (
        "import os, sys; from s10_resnet import cli; code = cli.run('train', ['--epochs', '0']); "
        "file = open('file', 'w'); os.write(1, b'x'); os.write(2, b'x'); sys.stdout.write('x'); sys.stderr.write('x'); "
        "print(code, file.fileno() > 2, file=file)"
    )
    command = f'"{sys.executable}" -c "{script}" {closed}'
    subprocess.run(command, shell=True, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True)
    assert (tmp_path / "file").read_text() == "2 True\n"


# python -m s10_resnet


def python_m(*argv):
    command = [sys.executable, "-m", "s10_resnet", *argv]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stdout, ended.stderr


def test_python_m_runs_a_command_under_its_own_name():
    code, out, err = python_m("train", "--epochs", "0")
    assert (code, out) == (2, "")
    assert err == "python -m s10_resnet train: error: --epochs 0: must be an integer from 1 to 10000\n"


def test_both_spellings_of_a_command_work(calls):
    assert cli.main(["find-lr", "--seed", "1"]) == cli.main(["find_lr", "--seed", "1"]) == 0
    assert calls == [("find_lr", FindLRConfig(seed=1))] * 2


def test_the_version_needs_no_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("s10-resnet ")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_without_a_command_all_are_listed(capsys, argv):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for name, command in cli.COMMANDS.items():
        assert f"  {name.replace('_', '-'):<10} {command.description}\n" in out


@pytest.mark.parametrize("name", ["trian", "--epochs", "two\nlines", ""])
def test_an_unknown_command_is_one_line(capsys, name):
    assert cli.main([name, "--epochs", "3"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("s10_resnet: error: ")
    assert "must be one of train, find-lr, sweep, evaluate, predict, compare, export, benchmark" in err
