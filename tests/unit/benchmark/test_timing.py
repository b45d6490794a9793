import time

import torch

from s10_resnet.benchmark import timing


def test_in_turn_after_a_warm_up():
    log = []

    def giving(name, *values):
        numbers = iter(values)
        return lambda: log.append(name) or next(numbers)

    times = timing.alternately(giving("package", 50, 1, 2), giving("textbook", 60, 3, 5), 2)
    assert log == ["package", "textbook"] * 3
    assert times == ([1, 2], [3, 5])


def test_seconds_are_those_of_the_call(monkeypatch):
    now = [5.0]

    def work(amount, more=0):
        now[0] += amount + more

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert timing.seconds(work, 3.0) == 3.0
    assert timing.seconds(work, 3.0, 1.0) == 4.0


def test_a_generator_is_run_to_its_end():
    done = []
    timing.exhaust(done.append(i) for i in range(5))
    assert done == [0, 1, 2, 3, 4]


def test_one_thread_and_back():
    before = torch.get_num_threads()
    try:
        with timing.one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
    except KeyError:
        pass
    assert torch.get_num_threads() == before


def test_a_device_is_waited_for_and_the_cpu_is_not(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))
    timing.wait(torch.device("cpu"))
    assert not waits
    timing.wait(torch.device("cuda"))
    assert waits == [1]
