"""One comparison: check that all do the same, time them in turns, measure their memory, and tell.

Every contestant has a process of its own, as its users run it; one of them works at a time.
"""

import logging
import platform
import re
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.agreement import check_agreement
from benchmarks.contestants import Case, Entrant
from benchmarks.processes import OwnProcess
from benchmarks.timing import race, speedup

logger = logging.getLogger(__name__)


def compare(case: Case, rounds: int, warmup: int = 2, memory: bool = False) -> dict[str, Any]:
    """Figures for :func:`table` and JSON.

    Args:
        rounds: how often each contestant is timed.
        warmup: rounds before that are not counted. After two the C library keeps what it needs.
        memory: also measure the memory of each contestant, in a fresh process.

    Raises:
        UserError: a contestant's outputs are not those of the baseline, it can't be built, or its process was killed.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(OwnProcess(Entrant(case, name), name)) for name in case.names}
        differences = _check(processes)
        times = race({name: partial(x.call, "run") for name, x in processes.items()}, rounds, warmup)
    peaks = {name: _memory(case, name) for name in case.names} if memory else {}
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


def _check(processes: dict[str, OwnProcess]) -> dict[str, float]:
    """How far each is from the first."""
    baseline, expected, differences = "", {}, {}
    for name, process in processes.items():
        outputs, tolerance = process.call("outputs")
        if not baseline:
            baseline, expected = name, outputs
        differences[name] = check_agreement(name, outputs, baseline, expected, tolerance)
        logger.info("%s differs from %s by %.2g", name, baseline, differences[name])
    return differences


def _memory(case: Case, name: str) -> float:
    with OwnProcess(Entrant(case, name), name) as process:
        return process.call("memory")


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
