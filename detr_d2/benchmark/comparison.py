"""One comparison: check that all do the same, time them in turns, measure their memory, and tell."""

import logging
import platform
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from tabulate import tabulate
from torch import Tensor

from detr_d2.benchmark.agreement import check_agreement
from detr_d2.benchmark.memory import added_memory, in_own_process
from detr_d2.benchmark.timing import Runner, race, speedup

logger = logging.getLogger(__name__)


class Contestant(NamedTuple):
    runner: Runner
    outputs: Callable[[], dict[str, Tensor]]
    """Does the work, perhaps more than once, and returns what is compared with the baseline's."""
    tolerance: float


class Case(Protocol):
    """What is compared: a frozen dataclass that other processes can read."""

    names: tuple[str, ...]
    """The contestants; the first is the baseline."""
    images: int
    """That a run works on."""

    @property
    def title(self) -> str: ...

    def build(self, name: str) -> Contestant: ...

    def without_chance(self) -> "Case":
        """The case to check the outputs of: this one, or one that differs by what it draws at random."""


def compare(case: Case, rounds: int, warmup: int = 1, memory: bool = False) -> dict[str, Any]:
    """Figures for :func:`table` and JSON.

    Args:
        rounds: how often each contestant is timed.
        warmup: rounds before that are not counted.
        memory: also measure the memory of each contestant, in a process of its own.

    Raises:
        UserError: a contestant's outputs are not those of the baseline.
    """
    exact = case.without_chance()
    contestants = {name: exact.build(name) for name in case.names}
    differences = _check(contestants)
    if exact != case:
        contestants = {name: case.build(name) for name in case.names}
    times = race({name: x.runner for name, x in contestants.items()}, rounds, warmup)
    del contestants
    peaks = {name: in_own_process(_memory_of, case, name) for name in case.names} if memory else {}
    baseline = case.names[0]
    return {
        "title": case.title,
        "benchmark": type(case).__name__.lower(),
        "case": asdict(case),
        "baseline": baseline,
        "contestants": [
            {
                "name": name,
                "seconds": [x.wall for x in runs],
                "cpu_seconds": [x.cpu for x in runs],
                "median": median(x.wall for x in runs),
                "speedup": speedup(times[baseline], runs)._asdict(),
                "images_per_second": case.images / median(x.wall for x in runs),
                "difference": differences[name],
                "memory_mib": peaks.get(name),
            }
            for name, runs in times.items()
        ],
    }


def _check(contestants: dict[str, Contestant]) -> dict[str, float]:
    """How far each is from the first."""
    baseline, expected, differences = "", {}, {}
    for name, contestant in contestants.items():
        outputs = contestant.outputs()
        if not baseline:
            baseline, expected = name, outputs
        differences[name] = check_agreement(name, outputs, baseline, expected, contestant.tolerance)
        logger.info("%s differs from %s by %.2g", name, baseline, differences[name])
    return differences


def _memory_of(case: Case, name: str) -> float:
    return added_memory(case.build(name).runner.run)


def table(result: dict[str, Any]) -> str:
    """The figures of one comparison, for people."""
    memory = result["contestants"][0]["memory_mib"]
    headers = [
        "",
        "median ms",
        "fastest",
        "slowest",
        "speedup",
        "from - to",
        "of fastest",
        "of CPU time",
        "images/s",
        "difference",
    ]
    rows = [_row(x, memory) for x in result["contestants"]]
    return f"{result['title']}\n" + tabulate(
        rows,
        headers if memory is None else [*headers, "memory MiB", "share"],
        disable_numparse=True,
        colalign=("left", *["right"] * (len(rows[0]) - 1)),
    )


def _row(figures: dict[str, Any], baseline_memory: float | None) -> list[str]:
    times = [1000 * x for x in (figures["median"], min(figures["seconds"]), max(figures["seconds"]))]
    ratio = figures["speedup"]
    row = [
        figures["name"],
        *(f"{x:.1f}" if x >= 10 else f"{x:.2f}" for x in times),
        f"{ratio['median']:.2f}",
        f"{ratio['lowest']:.2f} - {ratio['highest']:.2f}",
        f"{ratio['of_fastest']:.2f}",
        f"{ratio['cpu']:.2f}",
        f"{figures['images_per_second']:.3g}",
        f"{figures['difference']:.1e}",
    ]
    if baseline_memory is not None:
        memory = figures["memory_mib"]
        row += [f"{memory:.0f}", f"{memory / max(baseline_memory, 1e-9):.0%}"]
    return row


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.+)", text)
    extensions = [x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {x}" in text]
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "extensions": extensions,
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
