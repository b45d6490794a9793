import os
import signal
import subprocess
import sys
import threading
from signal import SIGINT, SIGTERM

import pytest

from s10_resnet.utils import signals
from s10_resnet.utils.signals import ShutdownRequested, defer_signals, graceful_shutdown
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
    """The `ShutdownRequested` that ends a block."""
    with pytest.raises(ShutdownRequested) as caught:
        block()
    return caught.value.signum, caught.value.urgent


@BOTH
def test_a_signal_stops_at_once_and_the_handlers_are_put_back(signum):
    before = handlers()

    @graceful_shutdown()
    def block():
        assert handlers() != before
        send(signum)
        pytest.fail("it was not heard")

    assert caught(block) == (signum, False)
    assert handlers() == before
    with graceful_shutdown():
        pass
    assert handlers() == before


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(ValueError, match="a bug"), graceful_shutdown():
        raise ValueError("a bug")
    assert handlers() == before


@pytest.mark.parametrize(("ignored", "signum"), [(None, SIGTERM), (None, SIGINT), (SIGTERM, SIGINT), (SIGINT, SIGTERM)])
def test_heeding_twice_is_heeding_once(ignored, signum):
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    done = []

    @graceful_shutdown()
    def block():
        outer = handlers()
        with defer_signals():
            send(signum)
            with graceful_shutdown():
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
    with graceful_shutdown():
        send(signum)
        assert signal.getsignal(signum) is signal.SIG_IGN
    assert handlers() == before


def test_in_a_thread_it_does_nothing():
    before, seen = handlers(), []

    def work():
        with graceful_shutdown():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@BOTH
def test_a_step_is_carried_to_its_end(signum, capfd):
    done = []

    @graceful_shutdown()
    def block():
        with defer_signals():
            send(signum)
            with defer_signals():
                done.append("inner")
            done.append("outer")
        pytest.fail("it was forgotten")

    assert caught(block) == (signum, False)
    assert done == ["inner", "outer"]
    answer = "\nstopping after this step; Ctrl-C again quits now\n" if signum == SIGINT else ""
    assert capfd.readouterr().err == answer


def test_an_error_in_a_step_goes_before_the_stop():
    @defer_signals()
    def step():
        send(SIGTERM)
        raise ValueError("half done")

    with graceful_shutdown():
        with pytest.raises(ValueError, match="half done"):
            step()
        assert caught(signals.raise_pending) == (SIGTERM, False)


@BOTH
def test_a_second_ctrl_c_does_not_wait(signum):
    @graceful_shutdown()
    def block():
        with defer_signals(), defer_signals():
            send(signum)
            send(SIGINT)
            pytest.fail("it waited")

    assert caught(block) == (SIGINT, True)

    @graceful_shutdown()
    def again():
        with pytest.raises(ShutdownRequested):
            send(signum)
        send(SIGINT)  # while the first is being obeyed
        pytest.fail("it was not heard")

    assert caught(again) == (SIGINT, True)


@BOTH
def test_a_repeated_sigterm_changes_nothing(signum):
    @graceful_shutdown()
    def block():
        with defer_signals():
            send(signum)
            send(SIGTERM)
        pytest.fail("it was forgotten")

    assert caught(block) == (signum, False)
    with graceful_shutdown():
        with pytest.raises(ShutdownRequested):
            send(signum)
        send(SIGTERM)  # while the first is being obeyed
        send(SIGTERM)


def test_the_next_block_starts_afresh():
    for signum in (SIGTERM, SIGINT):  # that Ctrl-C is a first one again, and waits
        done = []

        @graceful_shutdown()
        def block(signum=signum, done=done):
            with defer_signals():
                send(signum)
                done.append("to its end")

        assert caught(block) == (signum, False)
        assert done == ["to its end"]
    with graceful_shutdown(), defer_signals():
        pass


def test_a_process_that_is_about_to_end_hears_nothing_more():
    with graceful_shutdown():
        signals.ignore_signals()
        send(SIGTERM)
        send(SIGINT)
    send(SIGTERM)  # nor after
    send(SIGINT)


# A group of processes of its own, since a signal to ours would end whoever runs the tests.
GROUP = """
import os, signal, sys
from s10_resnet.utils import signals

signum, begins_in, child_calls, before = int(sys.argv[1]), *sys.argv[2:], {signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, before)
(begun, begin), (over, end) = os.pipe(), os.pipe()
with signals.graceful_shutdown():
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
    except signals.ShutdownRequested as stop:
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
    assert group(signum, "block_signals", "raise_pending") == ["sent", f"stopped by {signum}", "child: 0", "mask: True"]


@BOTH
def test_a_process_can_ignore_them(signum):
    assert group(signum, "graceful_shutdown", "ignore_signals") == [f"stopped by {signum}", "child: 0", "mask: True"]


@BOTH
def test_a_signal_that_python_drops_in_a_finaliser_is_obeyed_after_the_next_step_without_a_word(signum, monkeypatch):
    reported, after = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(type(unraisable.exc_value)))

    class Final:
        def __init__(self, work):
            self.work = work

        def __del__(self):
            self.work()

    @graceful_shutdown()
    def block():
        Final(lambda: send(signum))
        Final(lambda: 1 / 0)
        after.append("goes on")
        with defer_signals():
            after.append("a step")
        pytest.fail("it went on")

    hook = sys.unraisablehook
    assert caught(block) == (signum, False)
    assert after == ["goes on", "a step"]
    assert reported == [ZeroDivisionError]
    assert sys.unraisablehook is hook
