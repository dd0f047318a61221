"""Registration of datasets that are given as files on the command line instead of by name."""

import argparse
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data import register_coco_dataset, register_coco_panoptic_dataset
from detr_d2.engine.data_conversion import convert_data
from detr_d2.utils.errors import UserError, abbreviate

TRAIN, VAL = "own_train", "own_val"
"""Names under which the datasets are registered."""


class _Files(NamedTuple):
    """Files of one split; ``panoptic``: the folder of panoptic maps, if ``json`` is in that format."""

    json: str
    images: str
    panoptic: str | None

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
    panoptic annotations, ``MODEL.DETR.PANOPTIC.NUM_THINGS``. Has to run in every process. Does nothing if ``args`` has
    none of the arguments of :func:`detr_d2.cli.arguments.add_data_arguments`. Returns messages for the log.

    Raises:
        UserError: a flag lacks the other one of its pair, or the files can't be used.
    """
    converted = convert_data(args)
    train, val = _files(args, "train"), _files(args, "val")
    eval_only = getattr(args, "eval_only", False)
    if not (train or val):
        _check_datasets_given(cfg, eval_only)
        return []
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
    messages = [*converted, *(f"Dataset {name!r} is {split}." for name, split in files.items())]
    name = TRAIN if train else VAL
    # Numbers that are given in addition to the files stay, so that the check of the datasets can object to them.
    given = (args.opts or [])[::2]
    if "MODEL.DETR.NUM_CLASSES" not in given:
        cfg.MODEL.DETR.NUM_CLASSES = len(classes[name])
        shown = abbreviate(classes[name], limit=10)
        messages.append(f"MODEL.DETR.NUM_CLASSES {len(classes[name])}, from {files[name].json}: {shown}.")
    if files[name].panoptic and "MODEL.DETR.PANOPTIC.NUM_THINGS" not in given:
        # Prediction reads it from the config, since the dataset is not registered there.
        things = len(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id)
        cfg.MODEL.DETR.PANOPTIC.NUM_THINGS = things
        messages.append(f"MODEL.DETR.PANOPTIC.NUM_THINGS {things}: the first classes are things, the others stuff.")
    if not val:
        messages.append("There is no --val-json: nothing is evaluated.")
    return messages


def _files(args: argparse.Namespace, split: str) -> _Files | None:
    """Return the files of one split; None if no flag gives one."""
    files = _Files(*(getattr(args, f"{split}_{kind}", None) for kind in _Files._fields))
    if not any(files):
        return None
    if not files.json or not files.images:
        given = next(kind for kind, path in zip(_Files._fields, files, strict=True) if path)
        missing = "images" if files.json else "json"
        raise UserError(f"--{split}-{given} goes with --{split}-{missing}, which is missing: give both.")
    return files


def _check_datasets_given(cfg: CfgNode, eval_only: bool) -> None:
    """Raise if the config, of an earlier run or for fine-tuning, has datasets that only the missing flags define."""
    used = {} if eval_only else {TRAIN: ("train", cfg.DATASETS.TRAIN)}
    used[VAL] = ("val", cfg.DATASETS.TEST)
    flags = [
        f"--{split}-json and --{split}-images"
        for name, (split, datasets) in used.items()
        if name in datasets and name not in DatasetCatalog
    ]
    if flags:
        raise UserError(
            f"The config is for data that is given on the command line: give {', '.join(flags)}, or set DATASETS.TRAIN "
            "and DATASETS.TEST to registered datasets."
        )
