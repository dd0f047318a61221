"""Kills of commands at random moments: what exists is complete, and the next run removes what was not."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from detr_d2.cli.main import main
from detr_d2.data.shapes import ShapesSpec
from detr_d2.data.shapes.dataset import cached_folder, write_dataset
from tests.robustness.inputs import write_inputs

# Seconds in which a command ends, by itself or after a signal, on a busy machine.
_TIMEOUT = 600
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What Detectron2 appends to, line by line, the lock of iopath, and what is named by its time.
_LOGS = ("log.txt", "metrics.json", ".lock", ".tfevents")


class Task(NamedTuple):
    """Work that writes below a folder, ``out``; it is killed, and then run again to its end."""

    run: Callable[[dict[str, Path]], object]
    images: int = 0  # Number of images to make, for the work to take long enough.


def convert(files: dict[str, Path]) -> int:
    """Convert a checkpoint, over the earlier result."""
    out = files["out"] / "converted.pth"
    return main(["convert", "--input", str(files["weights"]), "--output", str(out), "--nheads", "2", "--force"])


def draw_shapes(files: dict[str, Path]) -> int:
    """Generate a dataset of shapes in the cache."""
    spec = ShapesSpec(num_images=40, seed=0, sides=(48, 64))
    return int(not cached_folder(files["out"] / "shapes", lambda folder: write_dataset(spec, folder)).is_dir())


def predict(files: dict[str, Path]) -> int:
    """Predict on images, over the earlier result."""
    words = ["--config-file", files["config"], "--input", files["images"], "--output", files["out"] / "predicted"]
    return main(["predict", *map(str, words), "--overwrite", "MODEL.WEIGHTS", str(files["weights"])])


def train(files: dict[str, Path]) -> int:
    """Train, with a checkpoint after every iteration, from the last one."""
    words = ["--config-file", files["config"], "--train-json", files["coco"], "--train-images", files["images"]]
    options = ["SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "1"]
    return main(["train", *map(str, words), "--output", str(files["out"] / "run"), "--resume", *options])


TASKS = {
    "convert": Task(convert),
    "draw shapes": Task(draw_shapes),
    "predict": Task(predict, images=20),
    "train": Task(train),
}


class KillCampaign:
    """Kills of one task.

    Processes are forked from one that has imported everything, so that most kills hit the work.
    """

    def __init__(self, folder: Path, name: str, seed: int = 0):
        """Run the task once, for its time and for what it writes."""
        self.task = TASKS[name]
        self.rng = random.Random(seed)
        self.log = folder / "log.txt"
        self.files = write_inputs(folder) | {"out": folder / "out"}
        for i in range(self.task.images):
            shutil.copy(self.files["image"], self.files["images"] / f"copy{i}.png")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self._finish()
        started = time.perf_counter()
        self._start_over()
        self._finish()
        self.seconds = time.perf_counter() - started
        self.expected = self._listing()

    def problems(self) -> list[str]:
        """Kill the task once, run it to its end, and return what is wrong afterwards."""
        if self.rng.random() < 0.5:
            self._start_over()
        process = self._start()
        time.sleep(self.rng.uniform(0, self.seconds))
        how = self.rng.choice(SIGNALS)
        with suppress(ProcessLookupError):  # It may have ended.
            os.kill(process.pid, how)
        process.join(_TIMEOUT)
        assert process.exitcode is not None, f"{how.name} has not ended the process in {_TIMEOUT} s"
        problems = [f"after {how.name}: {x}" for x in self._damaged()]
        self._finish()
        problems += [f"after {how.name} and another run: {x}" for x in self._damaged()]
        if (found := self._listing()) != self.expected:
            problems.append(f"after {how.name} and another run: there is {sorted(found ^ self.expected)}")
        return problems

    def _start(self) -> multiprocessing.Process:
        process = self.context.Process(target=_work, args=(self.task.run, self.files, self.log))
        process.start()
        return process

    def _finish(self) -> None:
        process = self._start()
        process.join(_TIMEOUT)
        assert process.exitcode == 0, f"exit code {process.exitcode}: {self.log.read_text()[-3000:]}"

    def _start_over(self) -> None:
        shutil.rmtree(self.files["out"])

    def _listing(self) -> set[str]:
        names = (str(x.relative_to(self.files["out"])) for x in self.files["out"].rglob("*"))
        return {x for x in names if not any(log in x for log in _LOGS)}

    def _damaged(self) -> list[str]:
        """Return the files under their final names that are not complete."""
        return [f"{name} is damaged" for name in self._listing() if not _is_complete(self.files["out"] / name)]


def _work(run: Callable[[dict[str, Path]], object], files: dict[str, Path], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    files["out"].mkdir(exist_ok=True)
    raise SystemExit(run(files))


def _is_complete(path: Path) -> bool:
    if path.is_dir() or path.suffix == ".tmp" or any(x.suffix == ".incomplete" for x in path.parents):
        return True
    try:
        if path.suffix == ".pth":
            torch.load(path, weights_only=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.name == "last_checkpoint":
            return (path.parent / path.read_text()).is_file()
    except Exception:
        return False
    return True
