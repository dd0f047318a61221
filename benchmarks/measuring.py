"""Time and memory of repeatable work, in turns, so that whatever else the machine does affects all alike."""

import ctypes
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from detr_d2 import UserError

# Seconds between two checks of the CPU time, and the fraction of them that an idle process may use.
_POLL_INTERVAL, _IDLE_CPU_FRACTION = 0.01, 0.1
_IDLE_TIMEOUT = 2.0  # Seconds.
_STATUS = Path("/proc/self/status")


def _nothing() -> None:
    pass


class Runner(NamedTuple):
    """Work that can be repeated."""

    run: Callable[[], Any]
    """The work that is timed."""
    prepare: Callable[[], Any] = _nothing
    """Work before each run, not timed."""
    finish: Callable[[], Any] = _nothing
    """Work after each run, not timed."""


class Elapsed(NamedTuple):
    """Seconds of a run."""

    wall: float
    cpu: float
    """CPU time of all threads of this process, which excludes what others do on a busy machine."""


class Speedup(NamedTuple):
    """Factors by which an implementation is faster than the baseline."""

    median: float
    """Median of the rounds' ratios: what disturbed a whole round cancels."""
    lowest: float
    highest: float
    of_fastest: float
    """The baseline's fastest run over the fastest run, without what disturbed single runs."""
    cpu: float
    """Ratio of the CPU time of the median runs."""


def stopwatch(runner: Runner) -> Elapsed:
    """Time one run, until the GPU has done it, too, if there is one."""
    runner.prepare()
    try:
        synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        runner.run()
        synchronize()
        return Elapsed(time.perf_counter() - wall, time.process_time() - cpu)
    finally:
        runner.finish()


def synchronize() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def wait_until_idle() -> None:
    """Wait until the threads of this process sleep, two seconds at most.

    Threads of OpenMP poll for more work, for up to a fifth of a second, on cores that others need.
    """
    until = time.perf_counter() + _IDLE_TIMEOUT
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(_POLL_INTERVAL)
        if time.process_time() - before < _IDLE_CPU_FRACTION * _POLL_INTERVAL:
            return


def interleave(
    turns: Mapping[str, Callable[[], tuple[float, float]]], rounds: int, warmup: int = 1
) -> dict[str, list[Elapsed]]:
    """Return the times of every run by name.

    Each round runs every turn once and begins with another one, because what follows a program that leaves the
    caches cold or the processor hot is slower.

    Args:
        turns: functions by name that run once and return the wall and CPU time.
        rounds: number of rounds that are counted.
        warmup: number of rounds before these, not counted.
    """
    names = list(turns)
    times: dict[str, list[Elapsed]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            elapsed = Elapsed(*turns[name]())
            if i >= warmup:
                times[name].append(elapsed)
    return times


def speedup(baseline: list[Elapsed], times: list[Elapsed]) -> Speedup:
    """Compare the times of two implementations in the same rounds."""
    ratios = [reference.wall / own.wall for reference, own in zip(baseline, times, strict=True)]
    fastest = [min(x.wall for x in runs) for runs in (baseline, times)]
    # A clock that is too coarse for a run returns 0.
    cpu = [max(median(x.cpu for x in runs), 1e-9) for runs in (baseline, times)]
    return Speedup(median(ratios), min(ratios), max(ratios), of_fastest=fastest[0] / fastest[1], cpu=cpu[0] / cpu[1])


def added_memory(run: Callable[[], Any]) -> float:
    """Return the MiB that ``run`` adds at its peak to this process, or to the GPU if one is in use.

    Raises:
        UserError: not on Linux.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not _STATUS.exists():
        raise UserError("Memory is measured on Linux only: leave out --memory.")
    _return_freed_memory()
    # Reset the peak. getrusage would count the memory of the parent process, too.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) / 1024


def _return_freed_memory() -> None:
    """Return free memory to the system, because reusing it would not be counted; other C libraries keep none."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _kilobytes(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1])
