"""Check that training and prediction work on this machine's GPU, and write a report that docs/BENCHMARKS.md can hold.

Takes about ten minutes, and needs no data or weights: models are random, images random or rendered. A failing check
does not stop the others; the exit code is 1 if one failed. In a checkout with the package python-detr, results and
speed are compared with the original code.

Examples:
  detr-d2 check-gpu --output gpu_report.md
  what can be checked on a CPU, in a few minutes:
    detr-d2 check-gpu --device cpu --quick
  one of the checks again, or several, by parts of their names:
    detr-d2 check-gpu --only "two processes" compile
"""

import argparse
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.benchmark import find_checkout, run_benchmarks
from detr_d2.cli.command import Command, start_process
from detr_d2.cli.main import format_versions
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

if TYPE_CHECKING:
    from detr_d2.engine.gpu_checks import Check, Result, Settings

_INFERENCE = ("python-detr", "ours", "ours-optimized", "ours-compiled", "ours-bf16", "ours-compiled-bf16")
_TRAINING = ("python-detr", "ours", "ours-checkpoints", "ours-compiled", "ours-bf16")
# Precisions that a CPU computes in, or implementations that take it minutes to compile.
_QUICK = ("python-detr", "ours")


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--output", default="gpu_report.md", metavar="FILE", help="report (default: gpu_report.md)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--quick", action="store_true", help="use tiny images and few iterations, to try the checks")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="run the checks whose names hold a TEXT")


def run(args: argparse.Namespace) -> int:
    """Run the checks, print their results and write the report."""
    import torch
    from tabulate import tabulate

    from detr_d2.engine.gpu_checks import Settings, run_check

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU: add --device cpu for the checks that need none.")
    folder = Path(args.output).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {folder}.")
    checks = [x for x in all_checks() if not args.only or any(text in x.name for text in args.only)]
    if not checks:
        raise UserError(f"--only: choose from {', '.join(repr(x.name) for x in all_checks())}.")
    start_process()
    results = []
    with tempfile.TemporaryDirectory() as files:
        settings = Settings(args.device, args.quick, Path(files))
        for check in checks:
            results.append(run_check(check, settings))
            print(f"{results[-1].name}: {results[-1].outcome}. {results[-1].figures}", flush=True)
    print(tabulate(results, ("check", "result", "figures"), maxcolwidths=[None, None, 80]))
    with atomic_file(args.output) as file:
        file.write(report(results, args.words).encode())
    print(f"Wrote the report to {args.output}.")
    return int(any(x.outcome == "failed" for x in results))


def all_checks() -> "Sequence[Check]":
    """Return the checks of the package, then the comparisons with the original code."""
    from detr_d2.engine.gpu_checks import CHECKS, Check

    return (
        *CHECKS,
        Check("inference compared with python-detr", compare, ("inference", _INFERENCE)),
        Check("training step compared with python-detr", compare, ("training", _TRAINING)),
    )


def compare(settings: "Settings", benchmark: str, implementations: Sequence[str]) -> str:
    """Check that the results are those of the original code, and return times, memory and speedups over it."""
    from detr_d2.engine.gpu_checks import Failed, NotRun

    checkout = find_checkout()
    if checkout is None:
        raise NotRun("the benchmarks are in a checkout of the repository: run it there")
    if importlib.util.find_spec("detr") is None:
        raise NotRun("pip install --no-deps python-detr==0.1.7 panopticapi-lite==0.2.0")
    quick = ("--size", "64", "96", "--rounds", "1") if settings.quick else ("--memory",)
    file, errors = settings.folder / f"{benchmark}.json", settings.folder / "errors.txt"
    words = [benchmark, "--device", settings.device, "--json", str(file), *quick]
    words += ["--implementations", *(_QUICK if settings.quick else implementations)]
    with patch.dict(os.environ, NVIDIA_TF32_OVERRIDE="0"), errors.open("w") as log:
        code = run_benchmarks(checkout, words, stderr=log)
    if code:
        lines = errors.read_text().strip().splitlines() or [f"exit code {code}"]
        raise Failed(lines[-1])
    return "; ".join(map(_describe, json.loads(file.read_text())["comparisons"][0]["implementations"]))


def _describe(x: dict[str, Any]) -> str:
    memory = "" if x["memory_mib"] is None else f", {x['memory_mib']:.0f} MiB"
    speedup = "" if x["name"] == "python-detr" else f", {x['speedup']['median']:.2f} × as fast"
    return f"{x['name']} {1000 * x['median']:.1f} ms{speedup}{memory}, difference {x['difference']:.0e}"


def report(results: "Sequence[Result]", words: Sequence[str]) -> str:
    """Format the results as a section in Markdown."""
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU {platform.processor() or platform.machine()}"
    versions = [*format_versions().splitlines(), *([f"CUDA {torch.version.cuda}", _driver()] if on_gpu else [])]
    rows = (f"| {x.name} | {x.outcome} | {x.figures.replace('|', '/')} |" for x in results)
    lines = [
        f"### {device}",
        f"{'; '.join(versions)}. TF32 was off.",
        f"```bash\n{shlex.join(['detr-d2', 'check-gpu', *words])}\n```",
        "\n".join(("| check | result | figures |", "|---|---|---|", *rows)),
    ]
    return "\n\n".join(lines) + "\n"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "driver unknown"
    version, _, memory = found.splitlines()[0].partition(", ")
    return f"driver {version}, {memory} of GPU memory"


main = Command("check-gpu", __doc__, _add_flags, run)
