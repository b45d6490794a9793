import errno
import fcntl
import io
import logging
import os
import signal
import struct
import subprocess
import sys
import termios

import pytest

from s10_resnet.utils.console import format_table, logger, progress_bar, warn_on_error
from s10_resnet.utils.signals import ShutdownRequested
from tests.conftest import REPOSITORY


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_streams_are_those_of_the_moment(monkeypatch):
    for _ in range(2):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        logger.debug("nobody asked")
        logger.info("50 %s, %d\nand more")
        logger.warning("two\nlines")
        logger.error("worse")
        assert out.getvalue() == "50 %s, %d\nand more\n"
        assert err.getvalue() == "warning: two\nlines\nerror: worse\n"


def test_no_other_handler_prints_it_again(capsys):
    root = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(root)
    try:
        logger.info("once")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr().out == "once\n"


def test_messages_are_written_above_the_bars(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    for item in progress_bar(range(2), desc="sweep", unit="run"):
        logger.info(f"run {item}")
    drawn = screen.getvalue()
    assert "sweep:" in drawn
    for item in range(2):  # the bar was wiped before, and the line begins where it was
        assert drawn[: drawn.index(f"run {item}\n")].endswith("\r")


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii", errors="strict"))
    logger.info("café \udcff")
    assert buffer.getvalue() == b"caf\\xe9 \\udcff\n"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="utf-8", errors="strict"))
    logger.info("café \udcff")
    assert buffer.getvalue().endswith("\ncafé \\udcff\n".encode())


def test_what_controls_a_terminal_is_escaped(capsys):
    logger.info("a\x1b[2J\r\t\x07 \u202e\u2028é \N{SNOWMAN}\nb")
    assert capsys.readouterr().out == "a\\x1b[2J\\r\\t\\x07 \\u202e\\u2028é \N{SNOWMAN}\nb\n"


@pytest.mark.parametrize("error", [ValueError("no\nsuch font"), MemoryError(), FileNotFoundError(2, "gone", "a.ttf")])
def test_an_error_can_be_a_warning(capsys, error):
    with warn_on_error("no plot"):
        raise error
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    assert capsys.readouterr() == ("", f"warning: no plot ({reason})\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_an_error_of_the_disk_is_no_warning(number):
    with pytest.raises(OSError, match=os.strerror(number)), warn_on_error("no plot"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(ShutdownRequested), warn_on_error("no plot"):
        raise ShutdownRequested(signal.SIGINT)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_or_missing_gets_nothing(monkeypatch, capsys, name):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, stream)
            logger.info("line")
            logger.warning("line")
            assert list(progress_bar(range(3))) == [0, 1, 2]
    expected = {"stdout": ("", "warning: line\n" * 2), "stderr": ("line\n" * 2, "")}  # of the one that is left
    assert capsys.readouterr() == expected[name]


def test_a_shell_may_close_both(tmp_path):
    script = (
        "from s10_resnet.utils.console import logger, progress_bar; logger.info('a'); logger.warning('b'); "
        "list(progress_bar(range(3), desc='c')); open('done', 'w').close()"
    )
    command = f'"{sys.executable}" -c "{script}" >&- 2>&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert not (tmp_path / "done").read_bytes()


def test_a_table_is_aligned():
    assert format_table([["run", "n"], ["a", "10"], ["longer", "2"]]) == ["run      n", "a       10", "longer   2"]


def test_bars_need_a_terminal(monkeypatch):
    for stream, shown in ((Terminal(), True), (io.StringIO(), False), (None, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert progress_bar().disable is not shown


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of POSIX")
def test_a_terminal_without_rows_gets_no_bars(monkeypatch):
    main, terminal = os.openpty()  # of 0 rows and columns, as in a script
    with os.fdopen(main, "wb"), os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        assert progress_bar().disable
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        assert not progress_bar().disable
