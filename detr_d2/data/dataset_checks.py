"""What must hold of the datasets before a model is built: otherwise training would fail late, or silently."""

import difflib
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from detr_d2.data.annotation_table import AnnotationTable
from detr_d2.errors import UserError

logger = logging.getLogger(__name__)

# Of correct XYWH boxes hardly one leaves its image; of XYXY boxes taken for XYWH about half do.
SUSPICIOUS_SHARE_BEYOND_IMAGE = 0.25
MAX_NAMES_SHOWN = 5


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check the datasets in ``DATASETS.TRAIN`` and ``DATASETS.TEST``; logs what is dropped or doubtful.

    Every dataset is loaded once more than Detectron2 loads it; images are not opened.

    Args:
        cfg: with the keys of ``add_detr_config``.
        train: whether training is meant. False checks ``DATASETS.TEST`` only.

    Raises:
        UserError: a dataset that is unknown, missing, malformed, without objects to learn from, or
            whose classes don't fit ``MODEL.DETR.NUM_CLASSES`` or another dataset's.
    """
    wanted = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[wanted]:
        raise UserError(f"DATASETS.{wanted} is empty: name at least one registered dataset.")
    names = list(dict.fromkeys((tuple(cfg.DATASETS.TRAIN) if train else ()) + tuple(cfg.DATASETS.TEST)))
    for name in names:
        _check_registered(name)
        _check_paths(name)
    records = {name: _load(name) for name in names}
    _check_same_classes(names)
    for name in names:
        _check_num_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
    for name in names:
        _check_annotations(name, records.pop(name), cfg.MODEL.DETR.NUM_CLASSES, train and name in cfg.DATASETS.TRAIN)


def _check_registered(name: str) -> None:
    if name in DatasetCatalog:
        return
    similar = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    hint = f" Similar names: {', '.join(similar)}." if similar else ""
    raise UserError(
        f"Dataset {name!r} in DATASETS is not registered: correct the name, or register it, e.g. with "
        f"detectron2.data.datasets.register_coco_instances.{hint}"
    )


def _check_paths(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "image_root"):
        path = metadata.get(key)
        if path and _is_missing(path):
            raise UserError(f"Dataset {name!r} needs {path}, which does not exist: {_path_hint(path)}")


def _is_missing(path: str) -> bool:
    # Addresses can't be asked for before they are fetched.
    return "://" not in path and not PathManager.exists(path)


def _path_hint(path: str) -> str:
    root = os.getenv("DETECTRON2_DATASETS")
    if not path.startswith(os.path.join(os.path.expanduser(root or "datasets"), "")):
        return "correct the path it was registered with."
    state = f"it is {root}" if root else "it is not set, which means ./datasets"
    return f"set the environment variable DETECTRON2_DATASETS to the folder that holds your datasets ({state})."


def _load(name: str) -> Sequence[dict]:
    """The records of a dataset. Errors of Detectron2's json reader get the path they lack."""
    json_file = MetadataCatalog.get(name).get("json_file")
    try:
        records = DatasetCatalog.get(name)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        if json_file is None and not isinstance(error, OSError):
            raise
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(
            f"Dataset {name!r} can't be loaded from {json_file or 'its files'} "
            f"({type(error).__name__}: {reason}): correct the file. In COCO's format category ids are whole "
            "numbers that 'categories' lists."
        ) from error
    if len(records) == 0:
        raise UserError(f"Dataset {name!r} has no images: correct {json_file or 'what it is made from'}.")
    return records


def _check_num_classes(name: str, num_classes: int) -> None:
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None or len(classes) == num_classes:
        return
    noun = "class" if len(classes) == 1 else "classes"
    raise UserError(
        f"MODEL.DETR.NUM_CLASSES is {num_classes} but dataset {name!r} has {len(classes)} thing {noun} "
        f"({_abbreviate(classes)}): set MODEL.DETR.NUM_CLASSES {len(classes)}. "
        "Do not count a no-object class."
    )


def _check_same_classes(names: Sequence[str]) -> None:
    """A class index must mean the same in all datasets."""
    known = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    known = [(name, list(classes)) for name, classes in known.items() if classes is not None]
    for name, classes in known[1:]:
        first, expected = known[0]
        if classes != expected:
            raise UserError(
                f"Datasets {first!r} and {name!r} have different classes: "
                f"{_difference(first, expected, name, classes)}. Give them the same categories in the same order."
            )


def _difference(first: str, expected: list[str], second: str, classes: list[str]) -> str:
    only_first = [item for item in expected if item not in classes]
    only_second = [item for item in classes if item not in expected]
    parts = [f"only {first!r} has {_abbreviate(only_first)}"] if only_first else []
    parts += [f"only {second!r} has {_abbreviate(only_second)}"] if only_second else []
    if parts:
        return "; ".join(parts)
    return f"the same names in another order, {_abbreviate(expected)} and {_abbreviate(classes)}"


def _check_annotations(name: str, records: Sequence[dict], num_classes: int, train: bool) -> None:
    if not isinstance(records, list):
        logger.warning("Dataset %r is no list of records: its annotations are not checked.", name)
        return
    file_name = records[0].get("file_name")
    if file_name and _is_missing(file_name):
        raise UserError(f"Dataset {name!r} needs image {file_name}, which does not exist: correct its folder.")
    table = AnnotationTable(records)
    _check_labels(name, table, num_classes)
    without_area = table.without_area()
    if train and len(without_area) == len(table):
        raise UserError(
            f"Dataset {name!r} has no object to learn from (its annotations: {table.num_crowds} crowds, "
            f"{len(table)} boxes without area): annotate objects, with 'iscrowd' 0, or remove it from "
            "DATASETS.TRAIN."
        )
    _warn_about_boxes(name, table, without_area)


def _check_labels(name: str, table: AnnotationTable, num_classes: int) -> None:
    wrong = (table.classes >= num_classes).nonzero()[0]
    if len(wrong):
        raise UserError(
            f"Dataset {name!r}: category_id {table.category(wrong[0])} of {table.name(wrong[0])} is not in "
            f"[0, {num_classes}), as for {len(wrong)} of {len(table)} annotations: count categories from 0, "
            f"or correct MODEL.DETR.NUM_CLASSES (now {num_classes})."
        )


def _warn_about_boxes(name: str, table: AnnotationTable, without_area: Sequence[int]) -> None:
    if len(without_area):
        logger.warning(
            "Dataset %r: %d of %d boxes have no area inside their image and are dropped, e.g. %s.",
            name,
            len(without_area),
            len(table),
            table.name(without_area[0]),
        )
    beyond = table.beyond_image()
    if table.declared_xywh[beyond].sum() > SUSPICIOUS_SHARE_BEYOND_IMAGE * max(len(table), 1):
        logger.warning(
            "Dataset %r: %d of %d boxes reach beyond their image, e.g. %s: are they XYXY, but declared XYWH?",
            name,
            len(beyond),
            len(table),
            table.name(beyond[0]),
        )


def _abbreviate(names: Sequence[str]) -> str:
    shown = ", ".join(str(item) for item in names[:MAX_NAMES_SHOWN])
    return shown if len(names) <= MAX_NAMES_SHOWN else f"{shown}, … {len(names) - MAX_NAMES_SHOWN} more"
