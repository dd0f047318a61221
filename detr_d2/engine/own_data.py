"""Datasets that are given as files on the command line instead of by registered names."""

import argparse

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from detr_d2.data import register_coco_dataset
from detr_d2.errors import UserError

TRAIN, VAL = "own_train", "own_val"
"""The names that the datasets are registered with."""

_NUM_CLASSES = "MODEL.DETR.NUM_CLASSES"
_MAX_NAMES_SHOWN = 10


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags that :func:`use_own_data` reads."""
    group = parser.add_argument_group(
        "own data",
        "annotations in COCO's format, instead of DATASETS.TRAIN and DATASETS.TEST; the number of classes is that of "
        "the annotations",
    )
    group.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    group.add_argument("--train-images", metavar="DIR", help="the folder of their images")
    group.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on; without, nothing is evaluated")
    group.add_argument("--val-images", metavar="DIR", help="the folder of their images")
    return parser


def use_own_data(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Register the files that ``args`` names, and let ``cfg`` train and evaluate on them.

    Sets ``DATASETS.TRAIN`` and ``DATASETS.TEST``, and ``MODEL.DETR.NUM_CLASSES`` unless ``args.opts`` does. Has to run
    in every process. Does nothing for a parser without the flags of :func:`add_data_arguments`.

    Returns:
        What was set, for the log.

    Raises:
        UserError: a flag lacks its other half, or the files can't be used.
    """
    train, val = _pair(args, "train"), _pair(args, "val")
    if not (train or val):
        _check_given(cfg, args)
        return []
    eval_only = getattr(args, "eval_only", False)
    if eval_only and not val:
        raise UserError("--eval-only evaluates on --val-json and --val-images: give them.")
    if not eval_only and not train:
        raise UserError("--val-json is only evaluated on: give --train-json and --train-images too, or --eval-only.")
    classes = {name: register_coco_dataset(name, *pair) for name, pair in ((VAL, val), (TRAIN, train)) if pair}
    cfg.DATASETS.TRAIN = (TRAIN,) if train else ()
    cfg.DATASETS.TEST = (VAL,) if val else ()
    return [
        *(f"Dataset {name!r} is {file} with images in {folder}." for name, (file, folder) in _named(train, val)),
        *_set_num_classes(cfg, args, classes[TRAIN if train else VAL], (train or val)[0]),
        *([] if val else ["There is no --val-json: nothing is evaluated."]),
    ]


def _named(train: tuple[str, str] | None, val: tuple[str, str] | None) -> list[tuple[str, tuple[str, str]]]:
    return [(name, pair) for name, pair in ((TRAIN, train), (VAL, val)) if pair]


def _pair(args: argparse.Namespace, part: str) -> tuple[str, str] | None:
    """The annotations and the image folder of one part, or None."""
    file, folder = getattr(args, f"{part}_json", None), getattr(args, f"{part}_images", None)
    if not (file or folder):
        return None
    if not file or not folder:
        given, missing = ("images", "json") if folder else ("json", "images")
        raise UserError(f"--{part}-{given} goes with --{part}-{missing}, which is missing: give both.")
    return file, folder


def _check_given(cfg: CfgNode, args: argparse.Namespace) -> None:
    """The config of an earlier run, or one for fine-tuning, may name datasets that only flags define."""
    wanted = (("val", VAL, cfg.DATASETS.TEST),)
    if not getattr(args, "eval_only", False):
        wanted = (("train", TRAIN, cfg.DATASETS.TRAIN), *wanted)
    flags = [
        f"--{part}-json and --{part}-images"
        for part, name, datasets in wanted
        if name in datasets and name not in DatasetCatalog
    ]
    if flags:
        raise UserError(
            f"The config is for data that is given on the command line: give {', '.join(flags)}, or set DATASETS.TRAIN "
            "and DATASETS.TEST to registered datasets."
        )


def _set_num_classes(cfg: CfgNode, args: argparse.Namespace, classes: list[str], file: str) -> list[str]:
    # What is stated beside the files is left as it is, so that the check of the datasets can object to it.
    if _NUM_CLASSES in (args.opts or [])[::2]:
        return []
    cfg.MODEL.DETR.NUM_CLASSES = len(classes)
    more = ", …" if len(classes) > _MAX_NAMES_SHOWN else ""
    return [f"{_NUM_CLASSES} {len(classes)}, from {file}: {', '.join(classes[:_MAX_NAMES_SHOWN])}{more}."]
