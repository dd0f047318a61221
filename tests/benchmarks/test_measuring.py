"""Turns, what is timed, and ratios by hand."""

from functools import partial

import pytest

from benchmarks import timing
from benchmarks.timing import Elapsed, Runner, race, rest, speedup, stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that only work moves: ``clock(3)`` is work of three seconds, on one and a half processors."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: 1.5 * now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    return work


def test_another_begins_each_round_and_warmup_is_not_counted(clock):
    order = []

    def turn(name: str, seconds: float) -> Elapsed:
        order.append(name)
        return stopwatch(Runner(partial(clock, seconds)))

    times = race({name: partial(turn, name, i + 1) for i, name in enumerate("abc")}, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert times == {name: [Elapsed(i + 1, 1.5 * (i + 1))] * 3 for i, name in enumerate("abc")}


def test_preparing_and_finishing_are_not_timed(clock):
    order = []

    def part(name: str, seconds: float):
        return lambda: (order.append(name), clock(seconds))

    elapsed = stopwatch(Runner(part("run", 2), prepare=part("prepare", 10), finish=part("finish", 20)))
    assert order == ["prepare", "run", "finish"]
    assert elapsed.wall == 2


def test_what_fails_is_finished_all_the_same():
    finished = []
    with pytest.raises(ZeroDivisionError):
        stopwatch(Runner(lambda: 1 / 0, finish=lambda: finished.append(True)))
    assert finished


@pytest.mark.parametrize(("busy", "looks"), [(0, 1), (3, 4), (1000, 200)])
def test_rest(monkeypatch, busy, looks):
    """Until a look finds the threads asleep, which spend the processor's time before; two seconds at most."""
    naps, spent = [], [0.0]

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        spent[0] += 2 * seconds if len(naps) <= busy else 1e-4

    monkeypatch.setattr(timing.time, "sleep", sleep)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(naps))
    monkeypatch.setattr(timing.time, "process_time", lambda: spent[0])
    rest()
    assert len(naps) == pytest.approx(looks, abs=looks // 100)


def test_speedup():
    """A disturbance of the whole second round leaves the median of the ratios as it is."""
    baseline = [Elapsed(wall, cpu) for wall, cpu in ((8, 6), (80, 6), (10, 9))]
    ours = [Elapsed(wall, cpu) for wall, cpu in ((2, 2), (20, 3), (5, 4))]
    found = speedup(baseline, ours)
    assert found == (4.0, 2.0, 4.0, 8 / 2, 6 / 3)


def test_a_clock_that_is_too_coarse():
    assert speedup([Elapsed(1, 0)], [Elapsed(1, 0)]).cpu == 1
