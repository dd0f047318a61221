"""Registration of datasets that are given as files on the command line instead of by name."""

import argparse
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data import register_coco_dataset, register_coco_panoptic_dataset
from detr_d2.utils.errors import UserError

TRAIN, VAL = "own_train", "own_val"
"""Names that the datasets are registered with."""

_NUM_CLASSES = "MODEL.DETR.NUM_CLASSES"
_NUM_THINGS = "MODEL.DETR.PANOPTIC.NUM_THINGS"
_MAX_NAMES_SHOWN = 10


class _Files(NamedTuple):
    """Files of one split, training or validation."""

    json: str
    images: str
    panoptic: str | None
    """Folder of panoptic maps; None: ``json`` is in the format of instances."""

    def register(self, name: str) -> list[str]:
        """Register them under ``name``, and return the names of the classes."""
        if self.panoptic:
            return register_coco_panoptic_dataset(name, self.json, self.panoptic, self.images)
        return register_coco_dataset(name, self.json, self.images)

    def __str__(self) -> str:
        maps = f" and panoptic maps in {self.panoptic}" if self.panoptic else ""
        return f"{self.json} with images in {self.images}{maps}"


def use_own_data(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Register the files that ``args`` names, and set ``cfg`` to train and evaluate on them.

    Sets ``DATASETS.TRAIN`` and ``DATASETS.TEST``, and unless ``args.opts`` does, ``MODEL.DETR.NUM_CLASSES`` and, for
    panoptic annotations, ``MODEL.DETR.PANOPTIC.NUM_THINGS``. Has to run in every process. Does nothing where ``args``
    has no such names.

    Args:
        args: what a parser with the flags of :func:`detr_d2.cli.arguments.add_data_arguments` returns.

    Returns:
        Messages for the log: what was set.

    Raises:
        UserError: a flag lacks the other one of its pair, or the files can't be used.
    """
    train, val = _files(args, "train"), _files(args, "val")
    if not (train or val):
        _check_given(cfg, args)
        return []
    eval_only = getattr(args, "eval_only", False)
    if eval_only and not val:
        raise UserError("--eval-only evaluates on --val-json and --val-images: give them.")
    if not eval_only and not train:
        raise UserError("--val-json is only evaluated on: give --train-json and --train-images too, or --eval-only.")
    if train and val and bool(train.panoptic) != bool(val.panoptic):
        raise UserError("--train-panoptic and --val-panoptic go together: give both, or neither.")
    files = {name: split for name, split in ((VAL, val), (TRAIN, train)) if split}
    classes = {name: split.register(name) for name, split in files.items()}
    cfg.DATASETS.TRAIN = (TRAIN,) if train else ()
    cfg.DATASETS.TEST = (VAL,) if val else ()
    name = TRAIN if train else VAL
    return [
        *(f"Dataset {name!r} is {split}." for name, split in files.items()),
        *_set_num_classes(cfg, args, classes[name], files[name].json),
        *(_set_num_things(cfg, args, name) if files[name].panoptic else []),
        *([] if val else ["There is no --val-json: nothing is evaluated."]),
    ]


def _files(args: argparse.Namespace, split: str) -> _Files | None:
    """Return the files of one split; None if no flag gives one."""
    json, images, panoptic = (getattr(args, f"{split}_{x}", None) for x in ("json", "images", "panoptic"))
    if not (json or images or panoptic):
        return None
    if not json or not images:
        given = "json" if json else "images" if images else "panoptic"
        missing = "images" if json else "json"
        raise UserError(f"--{split}-{given} goes with --{split}-{missing}, which is missing: give both.")
    return _Files(json, images, panoptic)


def _check_given(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse a config, of an earlier run or for fine-tuning, with datasets that only the missing flags define."""
    used = [("val", VAL, cfg.DATASETS.TEST)]
    if not getattr(args, "eval_only", False):
        used.insert(0, ("train", TRAIN, cfg.DATASETS.TRAIN))
    flags = [
        f"--{split}-json and --{split}-images"
        for split, name, datasets in used
        if name in datasets and name not in DatasetCatalog
    ]
    if flags:
        raise UserError(
            f"The config is for data that is given on the command line: give {', '.join(flags)}, or set DATASETS.TRAIN "
            "and DATASETS.TEST to registered datasets."
        )


def _set_num_classes(cfg: CfgNode, args: argparse.Namespace, classes: list[str], file: str) -> list[str]:
    # A number that is stated beside the files stays, so that the check of the datasets can object to it.
    if _NUM_CLASSES in (args.opts or [])[::2]:
        return []
    cfg.MODEL.DETR.NUM_CLASSES = len(classes)
    more = ", …" if len(classes) > _MAX_NAMES_SHOWN else ""
    return [f"{_NUM_CLASSES} {len(classes)}, from {file}: {', '.join(classes[:_MAX_NAMES_SHOWN])}{more}."]


def _set_num_things(cfg: CfgNode, args: argparse.Namespace, dataset: str) -> list[str]:
    # So that the config says it also where the dataset is not registered: in prediction.
    if _NUM_THINGS in (args.opts or [])[::2]:
        return []
    things = len(MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id)
    cfg.MODEL.DETR.PANOPTIC.NUM_THINGS = things
    return [f"{_NUM_THINGS} {things}: the first classes are things, the others stuff."]
