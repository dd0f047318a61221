"""Turns, what is timed, ratios by hand, and the memory of work that allocates a known amount."""

import sys
from functools import partial

import pytest
import torch

from benchmarks import measuring
from benchmarks.measuring import Elapsed, Runner, added_memory, interleave, speedup, stopwatch, wait_until_idle
from benchmarks.processes import WorkerProcess
from detr_d2 import keep_freed_memory


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that only work moves: ``clock(3)`` is work of three seconds, on one and a half processors."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring.time, "process_time", lambda: 1.5 * now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    return work


def test_each_round_begins_with_another_turn_and_warmup_is_not_counted(clock):
    order = []

    def turn(name: str, seconds: float) -> Elapsed:
        order.append(name)
        return stopwatch(Runner(partial(clock, seconds)))

    times = interleave({name: partial(turn, name, i + 1) for i, name in enumerate("abc")}, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert times == {name: [Elapsed(i + 1, 1.5 * (i + 1))] * 3 for i, name in enumerate("abc")}


def test_preparing_and_finishing_are_not_timed(clock):
    order = []

    def work(name: str, seconds: float):
        return lambda: (order.append(name), clock(seconds))

    elapsed = stopwatch(Runner(work("run", 2), prepare=work("prepare", 10), finish=work("finish", 20)))
    assert order == ["prepare", "run", "finish"]
    assert elapsed.wall == 2


def test_finish_follows_an_error():
    finished = []
    with pytest.raises(ZeroDivisionError):
        stopwatch(Runner(lambda: 1 / 0, finish=lambda: finished.append(True)))
    assert finished


@pytest.mark.parametrize(("busy", "looks"), [(0, 1), (3, 4), (1000, 200)])
def test_waiting_ends_when_the_threads_sleep(monkeypatch, busy, looks):
    """Or after two seconds."""
    naps, spent = [], [0.0]

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        spent[0] += 2 * seconds if len(naps) <= busy else 1e-4

    monkeypatch.setattr(measuring.time, "sleep", sleep)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: sum(naps))
    monkeypatch.setattr(measuring.time, "process_time", lambda: spent[0])
    wait_until_idle()
    assert len(naps) == pytest.approx(looks, abs=looks // 100)


def test_speedup():
    """A disturbance of the whole second round does not change the median of the ratios."""
    baseline = [Elapsed(wall, cpu) for wall, cpu in ((8, 6), (80, 6), (10, 9))]
    ours = [Elapsed(wall, cpu) for wall, cpu in ((2, 2), (20, 3), (5, 4))]
    found = speedup(baseline, ours)
    assert found == (4.0, 2.0, 4.0, 8 / 2, 6 / 3)


def test_speedup_with_a_coarse_clock():
    assert speedup([Elapsed(1, 0)], [Elapsed(1, 0)]).cpu == 1


class Work:
    """Work that allocates known amounts, in MiB."""

    def freed_memory(self) -> float:
        def work():
            torch.ones(32 << 18)
            torch.ones(16 << 18)

        return added_memory(work)

    def after_a_higher_peak(self) -> float:
        torch.ones(256 << 18)
        return added_memory(partial(torch.ones, 16 << 18))

    def kept(self) -> float:
        keep_freed_memory()
        return self.after_a_higher_peak()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_added_memory():
    with WorkerProcess(Work(), "work") as process:
        assert process.call("freed_memory") == pytest.approx(32, abs=4)
        assert process.call("after_a_higher_peak") == pytest.approx(16, abs=4)
        assert process.call("kept") == pytest.approx(16, abs=4)
