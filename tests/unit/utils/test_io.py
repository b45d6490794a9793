import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s10_resnet.errors import InputError
from s10_resnet.utils import io as files
from s10_resnet.utils.io import locked, write_whole
from tests.conftest import REPOSITORY

OLDER, OLD, NEW = b"older", b"old content" * 1000, b"new content" * 1500


@contextlib.contextmanager
def every_call(before, broken=()):
    """Calls ``before`` ahead of every change to the names in a folder and every fsync; ``broken`` ones then fail."""

    def watched(name, real):
        def call(*arguments):
            before(name, *arguments)
            if name in broken:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            return real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "replace", "rename", "fsync"):
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_content_is_replaced(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"a long first content")
    write_whole(path, b"second")
    assert contents(tmp_path) == {"file": b"second"}


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path):
    calls = []

    def note(name, first, *others):
        if name == "fsync":
            status = os.fstat(first)
            of_folder = os.path.samestat(status, tmp_path.stat())
            calls.append(("fsync", "folder" if of_folder else status.st_size))
        else:
            calls.append((name, Path(others[0]).name))

    with every_call(note):
        write_whole(tmp_path / "file", OLDER)  # less than a buffer holds
    assert calls == [("fsync", len(OLDER)), ("replace", "file"), ("fsync", "folder")]


@pytest.mark.parametrize("content", [b"", OLD])
def test_the_content_before_is_kept(tmp_path, content):
    path, previous = tmp_path / "file", tmp_path / "previous"
    for step in (content, OLDER, NEW):
        write_whole(path, step, previous)
    assert contents(tmp_path) == {"file": NEW, "previous": OLDER}


@pytest.mark.parametrize("broken", [(), ("link",)])
@pytest.mark.parametrize("kept", [{}, {"previous": OLDER}])
@pytest.mark.parametrize("failing", [None, *range(1, 9)])
def test_whatever_call_fails_or_is_the_last_both_files_are_whole(tmp_path, failing, kept, broken):
    """What is there at a call is what a crash at that moment leaves."""
    before, calls = {"file": OLD, **kept}, []

    def check(missing):
        found = contents(tmp_path)
        assert found.get("file") in (OLD, NEW) or (missing and "file" not in found)
        assert found.get("previous") in (before.get("previous"), OLD)
        assert OLD in (found.get("file"), found.get("previous"))

    def fail(name, *arguments):
        check(missing=broken or (failing and len(calls) > failing))  # for a moment, without hard links
        calls.append(name)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with contextlib.suppress(OSError), every_call(fail, broken):
        write_whole(tmp_path / "file", NEW, tmp_path / "previous")
    check(missing=broken)
    assert contents(tmp_path).keys() <= {"file", "previous"}
    if failing is None:
        assert 5 <= len(calls) <= 8  # two syncs and three new names, and some more without hard links
        assert contents(tmp_path) == {"file": NEW, "previous": OLD}
    if failing == 1:
        assert contents(tmp_path) == before


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(tmp_path):
    path, previous, seen = tmp_path / "file", tmp_path / "previous", []
    path.write_bytes(OLD)
    for name in (".file.tmp", ".previous.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with every_call(lambda *call: seen.append(path.exists() and path.read_bytes())):
        write_whole(path, NEW, previous)
    assert contents(tmp_path) == {"file": NEW, "previous": OLD}
    assert set(seen) == {OLD, NEW}  # never missing


def test_a_full_disk_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_whole(path, OLD)

    class Full(type(path)):
        def open(self, *arguments):
            return Path("/dev/full").open(*arguments)

        def with_name(self, name):
            return Full(super().with_name(name))

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(Full(path), NEW)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {"file": OLD}


HOLDER = """
import os, sys
from pathlib import Path
from s10_resnet.utils.io import locked

with locked(Path(sys.argv[1])):
    if len(sys.argv) > 2 and not os.fork():
        os.write(1, b"child\\n")
        sys.stdin.read()
        os.write(1, b"ended\\n")
        os._exit(0)
    os.write(1, b"held\\n")
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder, *more):
    """Another process that holds the lock of a folder, and a child of it if there is one more argument."""
    command = [sys.executable, "-c", HOLDER, str(folder), *more]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes) as process:
        try:
            assert {process.stdout.readline() for _ in ("held", *more)} == {f"{line}\n" for line in ("held", *more)}
            yield process
        finally:
            process.kill()


def refused(folder):
    with pytest.raises(InputError) as caught, locked(folder):
        pytest.fail("it was let in")
    assert str(caught.value) == f"{folder}: must be a run that no other process is working on"
    return True


def test_one_process_at_a_time_even_after_the_first_was_killed(tmp_path):
    with holder(tmp_path) as other:
        assert refused(tmp_path)
        other.kill()
        other.wait()
        with locked(tmp_path):
            assert refused(tmp_path)
    with locked(tmp_path):
        pass


def test_a_lock_is_of_one_folder(tmp_path):
    (tmp_path / "other").mkdir()
    with locked(tmp_path), locked(tmp_path / "other"):
        assert refused(tmp_path)
        assert refused(tmp_path / "other")


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ValueError, match="a bug"), locked(tmp_path):
        raise ValueError("a bug")
    with locked(tmp_path):
        pass


def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path):
    with holder(tmp_path, "child") as other:
        assert refused(tmp_path)  # and the child has not given its parent's away
        other.kill()
        other.wait()
        with locked(tmp_path):
            other.stdin.close()
            assert other.stdout.read() == "ended\n"  # it was there until now


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    for name in (".checkpoint.pt.tmp", ".last.pt.tmp", "mine.tmp", ".hidden"):
        (tmp_path / name).touch()
    with locked(tmp_path):
        assert contents(tmp_path).keys() == {"mine.tmp", ".hidden"}


def test_who_is_refused_clears_nothing_away(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".checkpoint.pt.tmp").touch()  # being written
        assert refused(tmp_path)
        assert contents(tmp_path).keys() == {".checkpoint.pt.tmp"}


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_a_system_without_locks_will_do(tmp_path, monkeypatch):
    def no_folders(path, *arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(os, "open", no_folders)
    with locked(tmp_path), locked(tmp_path):
        write_whole(tmp_path / "file", OLD)
        write_whole(tmp_path / "file", NEW, tmp_path / "previous")
    assert contents(tmp_path) == {"file": NEW, "previous": OLD}


def test_no_descriptor_stays_open(tmp_path):
    def of_folders():
        return sum(path.exists() and path.samefile(tmp_path) for path in Path("/dev/fd").iterdir())

    with locked(tmp_path):
        assert refused(tmp_path)
        write_whole(tmp_path / "file", OLD)
        assert of_folders() == 1
    assert of_folders() == 0
