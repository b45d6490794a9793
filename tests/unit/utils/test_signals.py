import os
import signal
import subprocess
import sys
import threading
from signal import SIGINT, SIGTERM

import pytest

from s10_resnet.utils import signals
from s10_resnet.utils.signals import Stopped, heeded, uninterrupted
from tests.conftest import REPOSITORY, handlers

BOTH = pytest.mark.parametrize("signum", [SIGINT, SIGTERM])


@pytest.fixture(autouse=True)
def _nothing_is_left(heard_by_nobody):
    yield
    signals._received.clear()
    signals._depth = 0


def send(signum):
    os.kill(os.getpid(), signum)


def caught(block):
    """The `Stopped` that ends a block."""
    with pytest.raises(Stopped) as caught:
        block()
    return caught.value.signum, caught.value.urgent


@BOTH
def test_a_signal_stops_at_once_and_the_handlers_are_put_back(signum):
    before = handlers()

    @heeded()
    def block():
        assert handlers() != before
        send(signum)
        pytest.fail("it was not heard")

    assert caught(block) == (signum, False)
    assert handlers() == before
    with heeded():
        pass
    assert handlers() == before


def test_a_stop_is_a_ctrl_c_that_names_its_signal():
    assert isinstance(Stopped(SIGTERM), KeyboardInterrupt)  # `except Exception` lets it through
    assert str(Stopped(SIGTERM)) == "SIGTERM"


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(ValueError, match="a bug"), heeded():
        raise ValueError("a bug")
    assert handlers() == before


@pytest.mark.parametrize(("ignored", "signum"), [(None, SIGTERM), (None, SIGINT), (SIGTERM, SIGINT), (SIGINT, SIGTERM)])
def test_heeding_twice_is_heeding_once(ignored, signum):
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    done = []

    @heeded()
    def block():
        outer = handlers()
        with uninterrupted():
            send(signum)
            with heeded():
                assert handlers() == outer
            assert handlers() == outer
            done.append("to its end")
        pytest.fail("it was forgotten")

    assert caught(block) == (signum, False)
    assert done == ["to its end"]


@BOTH
def test_what_the_process_was_started_to_ignore_stays_ignored(signum):
    signal.signal(signum, signal.SIG_IGN)
    before = handlers()
    with heeded():
        send(signum)
        assert signal.getsignal(signum) is signal.SIG_IGN
    assert handlers() == before


def test_in_a_thread_it_does_nothing():
    before, seen = handlers(), []

    def work():
        with heeded():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@BOTH
def test_a_step_is_carried_to_its_end(signum):
    done = []

    @heeded()
    def block():
        with uninterrupted():
            send(signum)
            with uninterrupted():
                done.append("inner")
            done.append("outer")
        pytest.fail("it was forgotten")

    assert caught(block) == (signum, False)
    assert done == ["inner", "outer"]


def test_without_a_signal_nothing_is_stopped():
    with heeded():
        with uninterrupted(), uninterrupted():
            pass
        signals.obey()


def test_an_error_in_a_step_goes_before_the_stop():
    @uninterrupted()
    def step():
        send(SIGTERM)
        raise ValueError("half done")

    with heeded():
        with pytest.raises(ValueError, match="half done"):
            step()
        assert caught(signals.obey) == (SIGTERM, False)


@BOTH
def test_a_second_ctrl_c_does_not_wait(signum):
    @heeded()
    def block():
        with uninterrupted(), uninterrupted():
            send(signum)
            send(SIGINT)
            pytest.fail("it waited")

    assert caught(block) == (SIGINT, True)

    @heeded()
    def again():
        with pytest.raises(Stopped):
            send(signum)
        send(SIGINT)  # while the first is being obeyed
        pytest.fail("it was not heard")

    assert caught(again) == (SIGINT, True)


@BOTH
def test_a_repeated_sigterm_changes_nothing(signum):
    @heeded()
    def block():
        with uninterrupted():
            send(signum)
            send(SIGTERM)
        pytest.fail("it was forgotten")

    assert caught(block) == (signum, False)
    with heeded():
        with pytest.raises(Stopped):
            send(signum)
        send(SIGTERM)  # while the first is being obeyed
        send(SIGTERM)


def test_the_next_block_starts_afresh():
    for signum in (SIGTERM, SIGINT):  # that Ctrl-C is a first one again, and waits
        done = []

        @heeded()
        def block(signum=signum, done=done):
            with uninterrupted():
                send(signum)
                done.append("to its end")

        assert caught(block) == (signum, False)
        assert done == ["to its end"]
    with heeded(), uninterrupted():
        pass


def test_a_step_that_was_broken_off_does_not_put_off_later_signals():
    @heeded()
    def broken():
        with uninterrupted():
            send(SIGINT)
            send(SIGINT)

    @heeded()
    def block():
        send(SIGTERM)
        pytest.fail("it was put off")

    assert caught(broken) == (SIGINT, True)
    assert caught(block) == (SIGTERM, False)


def test_a_process_that_is_about_to_end_hears_nothing_more():
    with heeded():
        signals.ignore()
        send(SIGTERM)
        send(SIGINT)
    send(SIGTERM)  # nor after
    send(SIGINT)


def test_a_stop_does_not_outlive_the_block_that_heeded_it():
    with pytest.raises(Stopped), heeded():
        send(SIGTERM)
    with uninterrupted():  # of a caller who goes on: engine.fit, say
        pass


# A group of processes of its own, since a signal to ours would end whoever runs the tests.
GROUP = """
import os, signal, sys
from s10_resnet.utils import signals

signum, begins_in, child_calls, before = int(sys.argv[1]), *sys.argv[2:], {signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, before)
(begun, begin), (over, end) = os.pipe(), os.pipe()
with signals.heeded():
    try:
        with getattr(signals, begins_in)():
            child = os.fork()
            if not child:
                code = 1
                try:
                    getattr(signals, child_calls)()
                    os.close(end)
                    os.close(begin)
                    os.read(over, 1)  # returns when the parent has sent the signal and closes its end
                    code = 0
                finally:
                    os._exit(code)
            os.close(begin)
            os.read(begun, 1)
            os.killpg(0, signum)
            print("sent")
        print("went on")
    except signals.Stopped as stop:
        print("stopped by", int(stop.signum))
os.close(end)
print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("mask:", signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before)
"""


def group(signum, begins_in, child_calls):
    command = [sys.executable, "-c", GROUP, str(int(signum)), begins_in, child_calls]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, start_new_session=True, timeout=30)
    return told.stdout.splitlines()


@BOTH
def test_a_process_that_is_started_never_hears_what_its_parent_hears_after(signum):
    assert group(signum, "withheld", "obey") == ["sent", f"stopped by {signum}", "child: 0", "mask: True"]


@BOTH
def test_a_process_can_ignore_them(signum):
    assert group(signum, "heeded", "ignore") == [f"stopped by {signum}", "child: 0", "mask: True"]


@BOTH
def test_without_either_it_hears_them_too(signum):
    assert group(signum, "heeded", "obey") == [f"stopped by {signum}", "child: 1", "mask: True"]


@BOTH
def test_a_signal_that_python_drops_in_a_finaliser_is_obeyed_after_the_next_step_without_a_word(signum, monkeypatch):
    reported, after = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(type(unraisable.exc_value)))

    class Final:
        def __init__(self, work):
            self.work = work

        def __del__(self):
            self.work()

    @heeded()
    def block():
        Final(lambda: send(signum))
        Final(lambda: 1 / 0)
        after.append("goes on")
        with uninterrupted():
            after.append("a step")
        pytest.fail("it went on")

    hook = sys.unraisablehook
    assert caught(block) == (signum, False)
    assert after == ["goes on", "a step"]
    assert reported == [ZeroDivisionError]
    assert sys.unraisablehook is hook
