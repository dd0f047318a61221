"""Long runs: memory, open files, threads and shared memory of a training and of predictions must not grow."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from numpy.typing import NDArray
from PIL import Image

from detr_d2.config import load_config
from detr_d2.data import register_coco_dataset
from detr_d2.engine import Predictor, Trainer
from tests.robustness.inputs import SMALL

POINTS = 20
"""Number of measurements of a run."""
SIDES = (32, 160)
_IMAGES = 24
_SIZES = {
    "MODEL.MASK_ON": True,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.DETR.HIDDEN_DIM": 128,
    "MODEL.DETR.NHEADS": 8,
    "INPUT.MIN_SIZE_TRAIN": (32, 128),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.MAX_SIZE_TRAIN": 160,
    "INPUT.CROP.RESIZE_SIZES": (40, 64),
    "INPUT.CROP.SIZE": (30, 60),
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINTS_KEPT": 1,
}


class Usage(NamedTuple):
    """Resources of this process and of the workers that it started."""

    memory: float  # Resident, in MiB; without the pages of files, which the system takes back when it likes.
    shared: float  # Of it shared memory.
    files: int
    threads: int


BOUNDS = Usage(memory=10, shared=1, files=8, threads=0)
"""Growth from the second third of a run to the last that is accepted: of memory that of the median, else the maximum.

Memory varies with the sizes of the images, and the number of files with the tensors that wait in the loader's queue.
"""


def usage() -> Usage:
    """Measure what the processes use now."""
    processes = [x for x in _processes(Path("/proc/self").resolve()) if (x / "fd").exists()]
    status = [dict(x.split(":\t", 1) for x in (p / "status").read_text().splitlines()) for p in processes]

    def mebibytes(name: str) -> float:
        return sum(int(x[name].split()[0]) for x in status) / 1024

    files = sum(len(list((x / "fd").iterdir())) for x in processes)
    shared = mebibytes("RssShmem")
    return Usage(mebibytes("RssAnon") + shared, shared, files, sum(int(x["Threads"]) for x in status))


def _processes(process: Path) -> Iterator[Path]:
    yield process
    for thread in (process / "task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _processes(Path("/proc", child))


def growth(usages: list[Usage], bounds: Usage = BOUNDS) -> list[str]:
    """Return by how much resources grow beyond the bounds after the first third, in which caches fill."""
    third = len(usages) // 3
    middle, last = usages[third : 2 * third], usages[2 * third :]
    problems = []
    for name, bound in bounds._asdict().items():
        typical = median if name == "memory" else max
        before, after = (typical(getattr(x, name) for x in part) for part in (middle, last))
        if after - before > bound:
            problems.append(f"{name} grows from {before:.1f} to {after:.1f}, by more than {bound}")
    return problems


def train(folder: Path, steps: int, work: Callable[[], object] = lambda: None) -> list[Usage]:
    """Train a small mask model on images of random sizes, with two workers, and measure it.

    Args:
        folder: folder for data and results.
        steps: number of iterations; a tenth of them passes between two checkpoints.
        work: what is done besides in every step, for example something that leaks.
    """
    cfg = _write_data(folder)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = steps, max(steps // 10, 1)
    trainer, measure = Trainer(cfg), _Measure(steps, work)
    trainer.register_hooks([measure])
    trainer.train()
    return measure.usages


class _Measure(HookBase):
    def __init__(self, steps: int, work: Callable[[], object]):
        self.period = max(steps // POINTS, 1)
        self.work = work
        self.usages: list[Usage] = []

    def after_step(self) -> None:
        self.work()
        if (self.trainer.iter + 1) % self.period == 0:
            self.usages.append(usage())


def predict(folder: Path, count: int, work: Callable[[], object] = lambda: None) -> list[Usage]:
    """Predict on as many images of random sizes, in batches of two, and measure it; ``work`` is as in :func:`train`."""
    cfg = _write_data(folder)
    torch.manual_seed(0)
    trained = Trainer.build_model(cfg)
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    torch.save({"model": trained.state_dict(), "class_names": ["cat", "dog"]}, cfg.MODEL.WEIGHTS)
    predictor, usages = Predictor.from_config(cfg), []
    for i, _, _ in predictor.predict(_random_images(count), batch_size=2):
        work()
        if (i + 1) % max(count // POINTS, 1) == 0:
            usages.append(usage())
    return usages


RUNS = {"training": train, "prediction": predict}


def _random_images(count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    rng = np.random.default_rng(0)
    for i in range(count):
        yield i, rng.integers(256, size=(*rng.integers(*SIDES, 2), 3), dtype=np.uint8)


def _write_data(folder: Path) -> CfgNode:
    """Write and register images of noise with an object each, and return the config of a model."""
    images, annotations = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in _random_images(_IMAGES):
        height, width = pixels.shape[:2]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        polygon = [[2, 3, 22, 3, 22, 28, 2, 28]]
        box = {"bbox": [2, 3, 20, 25], "area": 500, "iscrowd": 0, "segmentation": polygon}
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1 + i % 2, **box})
    classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": classes}
    (folder / "data.json").write_text(json.dumps(content))
    register_coco_dataset(f"own_{folder.name}", str(folder / "data.json"), str(folder))
    cfg = load_config("Base-DETR")
    settings = {**SMALL, **_SIZES, "DATASETS.TRAIN": (f"own_{folder.name}",), "OUTPUT_DIR": str(folder / "run")}
    cfg.merge_from_list([x for pair in settings.items() for x in pair])
    return cfg
