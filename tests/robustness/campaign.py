"""Bad inputs for every command: each must end in one error, quickly, and leave nothing behind."""

import contextlib
import io
import itertools
import logging
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from detr_d2.cli.main import main
from tests.robustness.faults import FAULTS
from tests.robustness.inputs import COMMANDS, write_inputs

CPU_SECONDS, SECONDS, GIGABYTES = 60, 300, 4
"""Limits of a command: its CPU time, its time on a busy machine, and the memory that it adds to the process."""


# Masks are read by commands that need them, images by those that have a model.
_UNREAD = {
    *((command, "runs") for command in ("train", "eval", "overfit", "demo", "evaluate-results")),
    *(("evaluate-results", fault) for fault in ("image width", "image file")),
    *((command, fault) for command in ("calibrate", "doctor") for fault in ("run", "runs", "image width")),
}


class Case(NamedTuple):
    """A command with a fault in one of its inputs; the seed decides on the rest."""

    command: str
    file: str
    fault: str
    seed: int

    def __str__(self) -> str:
        return f"{self.command}: {self.file}, {self.fault}, seed {self.seed}"


class Outcome(NamedTuple):
    """What a command did."""

    code: int | None  # None if it raised an exception.
    printed: str
    seconds: float


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Yield cases, every fault of every command once in a random order, then again with other seeds."""
    rng = random.Random(seed)
    table = [(c, f, x) for c, command in COMMANDS.items() for f in command.reads for x in FAULTS[f]]
    table = [x for x in table if (x[0], x[2]) not in _UNREAD]
    rounds = (rng.sample(table, len(table)) for _ in itertools.count())
    numbered = zip(itertools.count(seed), itertools.chain.from_iterable(rounds), strict=False)
    return (Case(*row, number) for number, row in itertools.islice(numbered, count))


class Campaign:
    """Runs cases in a folder, each in a copy of the valid inputs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.valid = write_inputs(folder / "valid")

    def problems(self, case: Case) -> list[str]:
        """Run a case and return what is wrong with the command's behavior: nothing, one hopes."""
        root = self.folder / "case"
        shutil.copytree(self.folder / "valid", root)
        try:
            files = {name: root / path.relative_to(self.folder / "valid") for name, path in self.valid.items()}
            files["out"] = root / "out"
            fault, path = FAULTS[case.file][case.fault], files[case.file]
            path.write_bytes(fault(path.read_bytes(), random.Random(case.seed)))
            before = _listing(root)
            outcome = run(COMMANDS[case.command].words(files), root)
            return [*_problems(outcome), *_written(before, _listing(root))]
        finally:
            shutil.rmtree(root)


def run(words: list[str], folder: Path) -> Outcome:
    """Run a command in this process, in a working folder, within the limits."""
    printed, started, code = io.StringIO(), time.perf_counter(), None
    here = os.getcwd()
    os.chdir(folder)
    try:
        with _limits(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = main(words)
            except SystemExit as e:
                code = e.code
            except BaseException:
                printed.write(traceback.format_exc())
    finally:
        os.chdir(here)
        _forget()
    return Outcome(code, printed.getvalue(), time.perf_counter() - started)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"over {CPU_SECONDS} seconds of CPU time, or {SECONDS} in all")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {x: signal.signal(x, stop) for x in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _forget() -> None:
    """Undo what a command leaves in the process: datasets of its files, and handlers that write to its output."""
    for name in [x for x in DatasetCatalog if x.startswith("own_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    setup_logger.cache_clear()
    for name in ("detectron2", "detr_d2", "fvcore", "py.warnings"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            handler.close()
        logger.handlers.clear()


def _problems(outcome: Outcome) -> list[str]:
    problems = []
    if outcome.code not in (1, 2):
        problems.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.printed:
        problems.append("a traceback")
    lines = outcome.printed.splitlines()
    # A report of `check` has a paragraph for every fault.
    errors = [x for x in lines if x.startswith("error:") or ": error: " in x]
    if len(errors) != 1 and not any(x.startswith("error   [") for x in lines):
        problems.append(f"{len(errors)} errors")
    if problems:
        problems.append("printed:\n" + outcome.printed[-3000:])
    return problems


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file that a command must leave as it is."""
    files = [x for x in folder.rglob("*") if x.is_file() and not x.relative_to(folder).parts[0].startswith("out")]
    return {str(x.relative_to(folder)): (x.stat().st_size, x.stat().st_mtime_ns) for x in files}


def _written(before: dict, after: dict) -> list[str]:
    return [f"wrote {x}" for x in after if after[x] != before.get(x)] + [
        f"removed {x}" for x in before if x not in after
    ]
