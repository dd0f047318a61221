"""Comparison of implementations: check that all return the same, time them in turns, measure memory, report.

Every implementation has its own process, as its users run it; one of them works at a time.
"""

import importlib
import importlib.util
import logging
import platform
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.measuring import Runner, added_memory, interleave, speedup, stopwatch, wait_until_idle
from benchmarks.processes import ROOT, WorkerProcess
from detr_d2 import UserError, keep_freed_memory

logger = logging.getLogger(__name__)


class Implementation(NamedTuple):
    """Work that is timed, with its results."""

    runner: Runner
    outputs: Callable[[], dict[str, Tensor]]
    """Function that does the work, perhaps several times, and returns what is compared with the baseline's."""
    tolerance: float
    keeps_freed_memory: bool
    """True if its process keeps freed memory, see :func:`detr_d2.keep_freed_memory`, as our programs do."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Base of the cases: work that several implementations do.

    Args:
        names: the implementations; the first is the baseline. ``NAME@FOLDER`` is the one of another checkout.
        batch: number of images that are processed together.
    """

    names: tuple[str, ...]
    batch: int = 1

    @property
    def images(self) -> int:
        """Number of images per run."""
        return self.batch

    @property
    def title(self) -> str:
        raise NotImplementedError

    def build(self, name: str) -> Implementation:
        raise NotImplementedError

    def deterministic(self) -> "Case":
        """Return the case whose outputs are compared: this one, or one without random numbers such as dropout."""
        return self


class CheckoutCase:
    """Case in a process that imports another checkout, whose own benchmarks build its implementation.

    The checkout is of this layout, or has its benchmarks in ``detr_d2.benchmark``.
    """

    def __init__(self, case: Case):
        self.module, self.name = type(case).__module__, type(case).__name__
        self.fields = asdict(case)

    def build(self, name: str) -> Implementation:
        return Implementation(*self._case().build(name))

    def deterministic(self) -> "CheckoutCase":
        case = self._case()
        return CheckoutCase(case.without_chance() if hasattr(case, "without_chance") else case.deterministic())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckoutCase) and self.fields == other.fields

    def _case(self) -> Case:
        inside = importlib.util.find_spec("detr_d2.benchmark") is not None
        module = importlib.import_module(f"detr_d2.benchmark.{self.name.lower()}" if inside else self.module)
        return getattr(module, self.name)(**self.fields)


class Worker:
    """Implementation of a case in its own process, which builds it on first use."""

    def __init__(self, case: Case, name: str):
        self.case = case
        self.name = name
        self._built: Implementation | None = None

    def outputs(self) -> tuple[dict[str, Tensor], float]:
        """Return what is compared, on the CPU, and the tolerance."""
        exact = self.case.deterministic()
        implementation = self._implementation() if exact == self.case else _build(exact, self.name)
        return {name: x.detach().cpu() for name, x in implementation.outputs().items()}, implementation.tolerance

    def run(self) -> tuple[float, float]:
        """Do the work once, wait until the threads sleep, and return the wall and CPU time of the work."""
        elapsed = stopwatch(self._implementation().runner)
        wait_until_idle()
        return tuple(elapsed)

    def memory(self) -> float:
        """Return the MiB that the work adds, see :func:`added_memory`."""
        return added_memory(self._implementation().runner.run)

    def _implementation(self) -> Implementation:
        if self._built is None:
            self._built = _build(self.case, self.name)
        return self._built


def _build(case: Case, name: str) -> Implementation:
    implementation = case.build(name)
    if implementation.keeps_freed_memory:
        keep_freed_memory()
    return implementation


def _start(case: Case, name: str) -> WorkerProcess:
    own_name, _, checkout = name.partition("@")
    if not checkout:
        return WorkerProcess(Worker(case, name), name, ROOT)
    return WorkerProcess(Worker(CheckoutCase(case), own_name), name, Path(checkout).resolve())


def compare(case: Case, rounds: int, warmup: int = 2, memory: bool = False) -> dict[str, Any]:
    """Return statistics for :func:`table` and JSON.

    Args:
        case: the case; its implementations take turns.
        rounds: number of times that each implementation is timed.
        warmup: number of rounds before these, not counted. After two the C library keeps what it needs.
        memory: True to measure also the memory of each implementation, in a fresh process.

    Raises:
        UserError: an implementation's outputs are not those of the baseline, it can't be built, or its process was
            killed.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_start(case, name)) for name in case.names}
        differences = _check(processes)
        times = interleave({name: partial(x.call, "run") for name, x in processes.items()}, rounds, warmup)
    peaks = {name: _memory(case, name) for name in case.names} if memory else {}
    baseline = case.names[0]
    return {
        "title": case.title,
        "benchmark": type(case).__name__.lower(),
        "case": asdict(case),
        "baseline": baseline,
        "implementations": [
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


def _check(processes: dict[str, WorkerProcess]) -> dict[str, float | None]:
    """Return the difference of each implementation from the first."""
    baseline, expected, differences = "", {}, {}
    for name, process in processes.items():
        outputs, tolerance = process.call("outputs")
        if not baseline:
            baseline, expected = name, outputs
        differences[name] = check_agreement(name, outputs, baseline, expected, tolerance)
        if differences[name] is not None:
            logger.info("%s differs from %s by %.2g", name, baseline, differences[name])
    return differences


def _memory(case: Case, name: str) -> float:
    with _start(case, name) as process:
        return process.call("memory")


def check_agreement(
    name: str, outputs: Mapping[str, Tensor], baseline: str, expected: Mapping[str, Tensor], tolerance: float
) -> float | None:
    """Return the largest of the :func:`differences`; None if there are no outputs.

    Raises:
        UserError: it exceeds ``tolerance``, or the outputs can't be compared.
    """
    try:
        by_output = differences(outputs, expected)
    except UserError as e:
        raise UserError(f"{name} and {baseline} can't be compared, so timing them says nothing: {e}") from e
    if not by_output:
        return None
    worst = max(by_output, key=by_output.get)
    if by_output[worst] > tolerance:
        raise UserError(
            f"{name} and {baseline} disagree, so timing them says nothing: their {worst} differ by "
            f"{by_output[worst]:.3g}, more than {tolerance:g}."
        )
    return by_output[worst]


def differences(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return by output the largest absolute difference of floating-point numbers, or the share of others that differ.

    Raises:
        UserError: an output is missing, has another shape, or holds numbers that are not finite.
    """
    if outputs.keys() != expected.keys():
        raise UserError(f"The outputs are {sorted(outputs)} and {sorted(expected)}: nothing to compare.")
    return {name: _difference(name, outputs[name], expected[name]) for name in expected}


def _difference(name: str, output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        raise UserError(f"The {name} have the shapes {tuple(output.shape)} and {tuple(expected.shape)}.")
    if not expected.numel():
        return 0.0
    output, expected = output.detach().cpu(), expected.detach().cpu()
    if not expected.is_floating_point():
        return (output != expected).double().mean().item()
    if not (output.isfinite().all() and expected.isfinite().all()):
        raise UserError(f"The {name} hold numbers that are not finite.")
    return (output.double() - expected.double()).abs().max().item()


_HEADERS = ("", "median ms", "fastest", "slowest", "speedup", "from - to", "of fastest", "of CPU time", "images/s")


def table(result: dict[str, Any]) -> str:
    """Format the statistics of one comparison."""
    memory = result["implementations"][0]["memory_mib"]
    headers = [*_HEADERS, "difference", *(() if memory is None else ("memory MiB", "share"))]
    rows = [_row(x, memory) for x in result["implementations"]]
    alignment = ("left", *["right"] * (len(headers) - 1))
    return f"{result['title']}\n" + tabulate(rows, headers, disable_numparse=True, colalign=alignment)


def _row(statistics: dict[str, Any], baseline_memory: float | None) -> list[str]:
    times = [1000 * x for x in (statistics["median"], min(statistics["seconds"]), max(statistics["seconds"]))]
    ratio = statistics["speedup"]
    row = [
        statistics["name"],
        *(f"{x:.1f}" if x >= 10 else f"{x:.2f}" for x in times),
        f"{ratio['median']:.2f}",
        f"{ratio['lowest']:.2f} - {ratio['highest']:.2f}",
        f"{ratio['of_fastest']:.2f}",
        f"{ratio['cpu']:.2f}",
        f"{statistics['images_per_second']:.3g}",
        "" if statistics["difference"] is None else f"{statistics['difference']:.1e}",
    ]
    if baseline_memory is not None:
        memory = statistics["memory_mib"]
        row += [f"{memory:.0f}", f"{memory / max(baseline_memory, 1e-9):.0%}"]
    return row


def machine() -> dict[str, Any]:
    """Describe what the times depend on."""
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
