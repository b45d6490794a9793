import contextlib
import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s10_resnet.errors import InputError
from s10_resnet.utils import io
from s10_resnet.utils.io import (
    atomic_write,
    create_run_dir,
    exclusive_lock,
    link_or_copy,
    read_csv,
    read_json,
    write_csv,
    write_json,
)
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
        atomic_write(tmp_path / "file", OLDER)  # less than a buffer holds
    assert calls == [("fsync", len(OLDER)), ("replace", "file"), ("fsync", "folder")]


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
        atomic_write(tmp_path / "file", NEW, tmp_path / "previous")
    check(missing=broken)
    assert contents(tmp_path).keys() <= {"file", "previous"}
    if failing is None:
        assert 5 <= len(calls) <= 8  # two syncs and three new names, and some more without hard links
        assert contents(tmp_path) == {"file": NEW, "previous": OLD}
    if failing == 1:
        assert contents(tmp_path) == before


@pytest.mark.parametrize("broken", [(), ("link",)])
def test_a_second_name_keeps_the_content_when_the_first_is_replaced(tmp_path, broken):
    file, second = tmp_path / "file", tmp_path / "second"
    with every_call(lambda *_: None, broken):
        for content in (OLDER, OLD):
            atomic_write(file, content)
            link_or_copy(file, second)
            assert second.read_bytes() == content
            assert second.samefile(file) == (not broken)
        atomic_write(file, NEW)
    assert contents(tmp_path) == {"file": NEW, "second": OLD}


def test_a_new_file_has_the_mode_that_any_other_has(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", OLD, tmp_path / "previous")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_nothing_is_written_through_a_link_or_over_a_file_under_the_temporary_name(tmp_path, monkeypatch):
    (tmp_path / "precious").write_bytes(OLD)
    monkeypatch.setattr(io, "_temporary_path", lambda path: path.with_name(".trap.tmp"))
    for trap in (lambda path: path.symlink_to("precious"), lambda path: path.symlink_to("new"), Path.touch):
        trap(tmp_path / ".trap.tmp")
        with pytest.raises(FileExistsError):
            atomic_write(tmp_path / "file", NEW)
        (tmp_path / ".trap.tmp").unlink(missing_ok=True)
    assert contents(tmp_path) == {"precious": OLD}


HOLDER = """
import os, sys
from pathlib import Path
from s10_resnet.utils.io import exclusive_lock

with exclusive_lock(Path(sys.argv[1])):
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
    with pytest.raises(InputError) as caught, exclusive_lock(folder):
        pytest.fail("it was let in")
    assert str(caught.value) == f"{folder}: must be a run that no other process is working on"
    return True


def test_one_process_at_a_time_even_after_the_first_was_killed(tmp_path):
    with holder(tmp_path) as other:
        assert refused(tmp_path)
        other.kill()
        other.wait()
        with exclusive_lock(tmp_path):
            assert refused(tmp_path)
    with exclusive_lock(tmp_path):
        pass


def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path):
    with holder(tmp_path, "child") as other:
        assert refused(tmp_path)  # and the child has not given its parent's away
        other.kill()
        other.wait()
        with exclusive_lock(tmp_path):
            other.stdin.close()
            assert other.stdout.read() == "ended\n"  # it was there until now


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    for name in (".checkpoint.pt.0f.tmp", ".last.pt.tmp", "mine.tmp", ".hidden"):
        (tmp_path / name).touch()
    with exclusive_lock(tmp_path):
        assert contents(tmp_path).keys() == {"mine.tmp", ".hidden", ".lock"}
        (tmp_path / ".checkpoint.pt.tmp").touch()  # being written
        assert refused(tmp_path)  # and clears nothing away
        assert contents(tmp_path).keys() == {"mine.tmp", ".hidden", ".lock", ".checkpoint.pt.tmp"}
    with pytest.raises(ValueError, match="a bug"), exclusive_lock(tmp_path):
        raise ValueError("a bug")
    assert contents(tmp_path).keys() == {"mine.tmp", ".hidden"}


def test_who_opened_the_lock_file_before_it_was_removed_does_not_hold_the_lock(tmp_path, monkeypatch):
    """The holder ends between the other's opening and its locking of the file, and a third one takes the lock."""
    flock, first, third = fcntl.flock, contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(exclusive_lock(tmp_path))

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        first.close()
        third.enter_context(exclusive_lock(tmp_path))
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with third:
        assert refused(tmp_path)
        assert refused(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / ".checkpoint.pt.tmp").touch()
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path):
        pass
    assert contents(tmp_path).keys() == {".checkpoint.pt.tmp"}  # perhaps being written by another process


def test_a_folder_that_cannot_be_locked_for_want_of_rights_is_an_error(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output error"), exclusive_lock(tmp_path):
        pytest.fail("it was let in")


def test_a_system_that_cannot_sync_folders_will_do(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("Windows opens no folders"))
    atomic_write(tmp_path / "file", OLD)
    atomic_write(tmp_path / "file", NEW, tmp_path / "previous")
    assert contents(tmp_path) == {"file": NEW, "previous": OLD}


def test_a_named_folder_is_made_once(tmp_path):
    folder = create_run_dir(tmp_path / "new" / "outputs", "run", "train")
    assert folder == tmp_path / "new" / "outputs" / "run"
    assert folder.is_dir()
    (folder / "kept").touch()
    with pytest.raises(InputError, match=r"^--name run: must be a new name; .*run exists and is not overwritten$"):
        create_run_dir(tmp_path / "new" / "outputs", "run", "train")
    assert (folder / "kept").exists()


def test_default_names_carry_date_and_time_and_never_collide(tmp_path):
    folders = [create_run_dir(tmp_path, "", "train") for _ in range(5)]
    assert len(set(folders)) == 5
    for folder in folders:
        assert re.fullmatch(r"train-\d{8}-\d{6}(-\d+)?", folder.name)


def test_an_output_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(InputError, match=rf"^--output-dir {path}: must be a folder"):
            create_run_dir(path, "run", "train")


def refusal(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    content = {"x": 0.1 + 0.2, "y": [1, None, True], "café\n": {}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == content
    rows = [{"epoch": 1.0, 'a "loss", so to say': 0.1 + 0.2}, {"epoch": 2.0, 'a "loss", so to say': float("nan")}]
    write_csv(tmp_path / "a.csv", rows)
    assert repr(read_csv(tmp_path / "a.csv")) == repr(rows)


NO_JSON = {
    "empty": b"",
    "text": b"no json",
    "half": b'{"epochs": 1',
    "more": b"{} {}",
    "a word that JSON does not have": b'{"loss": NaN}',
    "another": b"[1, -Infinity]",
    "deep": b"[" * 100_000,
    "deep and whole": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no number": b"1" * 5000,
    "not UTF-8": b'"\xff"',
    "a byte order mark": "\ufeff{}".encode(),
}
NO_TABLE = {
    "empty": b"",
    "ragged": b"a,b\r\n1,2\r\n3\r\n",
    "too long": b"a,b\n1,2,3\n",
    "a blank line": b"a,b\n1,2\n\n",
    "words": b"a,b\n1,two\n",
    "holes": b"a,b\n1,\n",
    "an open quote": b'a,b\n1,"2\n',
    "a field that is too long": b"a\n" + b"1" * 200_000 + b"\n",
    "not UTF-8": b"a\n\xff\n",
    "zeros": b"a\n\0\n",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert refusal(read_json, tmp_path / "a.json") == "is not JSON"


@pytest.mark.parametrize("content", NO_TABLE.values(), ids=NO_TABLE)
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert refusal(read_csv, tmp_path / "a.csv") == "is not a CSV file of numbers under a header line"


@pytest.mark.parametrize("read", [read_json, read_csv])
def test_what_cannot_be_read_is_refused(tmp_path, read):
    assert refusal(read, tmp_path / "missing") == "cannot be read (No such file or directory)"
    assert refusal(read, tmp_path) == "cannot be read (Is a directory)"
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):  # the second would wait for a writer
        assert refusal(read, path) == "must be a file, not a pipe or a device"
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(io.MAX_FILE_SIZE + 1)
    assert refusal(read, tmp_path / "huge") == "has 1.0 GB, more than any file of this package"
