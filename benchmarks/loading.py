"""Benchmark of loading: images per second from the training loader, read, augmented, with their targets."""

import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.utils.env import seed_all_rng
from torch import Tensor

from benchmarks import ours
from benchmarks.comparison import Case, Implementation
from benchmarks.measuring import Runner
from detr_d2 import DetrDatasetMapper, Trainer, UserError

# Images that are loaded before the clock starts, so that all workers are busy.
_WARMUP = 8
# Augmentation is random: means over so many images are compared, which may differ by this share.
_CHECKED = 200
_TOLERANCE = 0.1


class OldRecipe:
    """Mapper of the original project's Detectron2 wrapper, which copies the whole record and drops crowds afterwards.

    Its augmentation is DETR's, composed of Detectron2's own transforms.
    """

    def __init__(self, cfg: CfgNode):
        size = cfg.INPUT
        self.flip = [T.RandomFlip()]
        self.crop = [
            T.ResizeShortestEdge([400, 500, 600], sample_style="choice"),
            T.RandomCrop(size.CROP.TYPE, size.CROP.SIZE),
        ]
        self.resize = [T.ResizeShortestEdge(size.MIN_SIZE_TRAIN, size.MAX_SIZE_TRAIN, size.MIN_SIZE_TRAIN_SAMPLING)]
        self.image_format = size.FORMAT
        self.with_masks = cfg.MODEL.MASK_ON
        if self.with_masks and importlib.util.find_spec("shapely") is None:
            raise UserError("The old recipe crops polygons of masks with shapely: pip install shapely")

    def __call__(self, dataset_dict: dict) -> dict:
        record = copy.deepcopy(dataset_dict)
        image = detection_utils.read_image(record["file_name"], format=self.image_format)
        detection_utils.check_image_size(record, image)
        crop = self.crop if np.random.rand() <= 0.5 else []
        image, transforms = T.apply_transform_gens([*self.flip, *crop, *self.resize], image)
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        annotations = record.pop("annotations")
        for annotation in annotations:
            if not self.with_masks:
                annotation.pop("segmentation", None)
            annotation.pop("keypoints", None)
        objects = [
            detection_utils.transform_instance_annotations(x, transforms, image.shape[:2])
            for x in annotations
            if x.get("iscrowd", 0) == 0
        ]
        instances = detection_utils.annotations_to_instances(objects, image.shape[:2])
        record["instances"] = detection_utils.filter_empty_instances(instances)
        return record


@dataclass(frozen=True, kw_only=True)
class Loading(Case):
    """The training loader of a config, with one number of workers."""

    workers: int
    names: tuple[str, ...] = ("old recipe", "ours")
    images: int = 100
    batch: int = 2
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"loading: {self.images} images in batches of {self.batch}, {self.workers} workers"

    def build(self, name: str) -> Implementation:
        settings = {"DATALOADER.NUM_WORKERS": self.workers, "SOLVER.IMS_PER_BATCH": self.batch}
        cfg = ours.make_config("box", (*self.options, *(str(x) for pair in settings.items() for x in pair)))
        make_loader, mapper = RECIPES[name](cfg)
        stream = _Stream(make_loader, self.images)
        runner = Runner(stream.load, stream.start, stream.stop)
        return Implementation(runner, lambda: _means(cfg, mapper), _TOLERANCE, name == "ours")


def _old_recipe(cfg: CfgNode) -> tuple[Callable[[], Iterable], Callable[[dict], dict]]:
    mapper = OldRecipe(cfg)
    return lambda: build_detection_train_loader(cfg, mapper=mapper, dataset=_records(cfg)), mapper


def _ours(cfg: CfgNode) -> tuple[Callable[[], Iterable], Callable[[dict], dict]]:
    return lambda: Trainer.build_train_loader(cfg), DetrDatasetMapper(cfg, is_train=True)


RECIPES = {"old recipe": _old_recipe, "ours": _ours}


def _records(cfg: CfgNode) -> list[dict]:
    """Read the records of the datasets.

    Raises:
        UserError: there is no such dataset.
    """
    try:
        return get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
    except (FileNotFoundError, KeyError) as e:
        raise UserError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN} can't be read ({e}): DETECTRON2_DATASETS names their folder."
        ) from e


class _Stream:
    """Loader that starts before the clock and stops after it."""

    def __init__(self, make_loader: Callable[[], Iterable[list[dict]]], images: int):
        self.make_loader = make_loader
        self.images = images
        self.batches: Iterator[list[dict]] = iter(())

    def start(self) -> None:
        seed_all_rng(0)
        self.batches = iter(self.make_loader())
        self._load(_WARMUP)

    def load(self) -> None:
        self._load(self.images)

    def stop(self) -> None:
        self.batches = iter(())

    def _load(self, images: int) -> None:
        while images > 0:
            images -= len(next(self.batches))


def _means(cfg: CfgNode, mapper: Callable[[dict], dict]) -> dict[str, Tensor]:
    """Return what differs between augmentations that are not the same: mean sizes, objects and gray levels."""
    records = _records(cfg)
    seed_all_rng(0)
    samples = [mapper(x) for x in itertools.islice(itertools.cycle(records), _CHECKED)]
    statistics = [[*x["image"].shape[1:], len(x["instances"]), x["image"].float().mean()] for x in samples]
    means = torch.tensor(statistics, dtype=torch.float64).mean(0)
    # A small difference of logarithms is the relative one.
    return {"logarithms of mean height, width, number of objects and gray level": means.log()}
