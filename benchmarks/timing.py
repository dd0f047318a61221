"""Times of programs that take turns, so that whatever else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

# Seconds between looks at the processor's time, and what share of them a process may take that is asleep.
_LOOK, _ASLEEP = 0.01, 0.1
_LONGEST_REST = 2.0


def _nothing() -> None:
    pass


class Elapsed(NamedTuple):
    """Seconds of a run."""

    wall: float
    cpu: float
    """Of all threads of this process: what others do on a busy machine is left out."""


class Runner(NamedTuple):
    """Work that can be repeated."""

    run: Callable[[], Any]
    """What is timed."""
    prepare: Callable[[], None] = _nothing
    """What comes before each run and is not timed."""
    finish: Callable[[], None] = _nothing
    """What comes after each run and is not timed."""


def race(turns: Mapping[str, Callable[[], Elapsed]], rounds: int, warmup: int = 1) -> dict[str, list[Elapsed]]:
    """The times of every run, by name.

    In each round everyone runs once. Another one begins each time: who follows a program that leaves the caches
    cold or the processor hot changes.

    Args:
        turns: by name, what runs once and tells the time.
        warmup: rounds before that are not counted.
    """
    names = list(turns)
    times: dict[str, list[Elapsed]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            elapsed = turns[name]()
            if i >= warmup:
                times[name].append(elapsed)
    return times


def stopwatch(runner: Runner) -> Elapsed:
    """The time of one run, until the GPU, where there is one, has done it, too."""
    runner.prepare()
    try:
        synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        runner.run()
        synchronize()
        return Elapsed(time.perf_counter() - wall, time.process_time() - cpu)
    finally:
        runner.finish()


def rest() -> None:
    """Wait until the threads of this process sleep.

    Those of OpenMP look out for more work for a while, up to a fifth of a second, on processors that others need.
    """
    until = time.perf_counter() + _LONGEST_REST
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(_LOOK)
        if time.process_time() - before < _ASLEEP * _LOOK:
            return


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Speedup(NamedTuple):
    """How many times as fast as the baseline."""

    median: float
    """Of the rounds' ratios: what disturbed a whole round cancels."""
    lowest: float
    highest: float
    of_fastest: float
    """The baseline's fastest run over the fastest run: what disturbed single runs is left out."""
    cpu: float
    """The same of the processor's time, of the median runs."""


def speedup(baseline: list[Elapsed], times: list[Elapsed]) -> Speedup:
    """
    Args:
        baseline, times: of the same rounds.
    """
    ratios = [theirs.wall / ours.wall for theirs, ours in zip(baseline, times, strict=True)]
    fastest = [min(x.wall for x in runs) for runs in (baseline, times)]
    # A clock that is too coarse for a run says 0.
    processor = [max(median(x.cpu for x in runs), 1e-9) for runs in (baseline, times)]
    return Speedup(
        median(ratios), min(ratios), max(ratios), of_fastest=fastest[0] / fastest[1], cpu=processor[0] / processor[1]
    )
