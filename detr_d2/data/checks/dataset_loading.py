"""Loading of the datasets to check, from files or as registered."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data.annotations import is_panoptic
from detr_d2.data.checks.annotation_checks import AnnotationTable, check_annotations
from detr_d2.data.checks.coco_file import read_coco_file
from detr_d2.data.checks.findings import Expectations, Finding
from detr_d2.data.checks.image_checks import is_missing
from detr_d2.data.panoptic import PanopticCategories
from detr_d2.utils.errors import UserError

MAX_FAULTS_SHOWN = 3


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset to check.

    Attributes:
        name: for messages.
        train: whether it is trained on, not only evaluated on.
        records: in Detectron2's format.
        classes: names by label; None if unknown.
        findings: what was found while loading.
        panoptic: whether ``classes`` are things and stuff.
    """

    name: str
    train: bool
    records: Sequence[dict]
    classes: Sequence[str] | None
    findings: Sequence[Finding] = ()
    panoptic: bool = False


def load_coco(json_file: str, image_root: str, train: bool, name: str | None = None) -> LoadedDataset:
    """Load a COCO file in spite of faults, which ``findings`` list.

    Raises:
        UserError: the file or the folder is missing, or the file is not in COCO's format at all.
    """
    if is_missing(image_root):
        raise UserError(f"The image folder {image_root} does not exist: correct its path.")
    return LoadedDataset(name or json_file, train, *read_coco_file(json_file, image_root, train))


def load_registered(name: str, train: bool, from_json: bool = False) -> LoadedDataset:
    """Load a registered dataset.

    Args:
        name: as registered.
        train: whether it is trained on.
        from_json: read the JSON file of a dataset in COCO's format with ``load_coco``, which finds more faults than
            Detectron2's reader; datasets of other formats are loaded as registered.

    Raises:
        UserError: it is unknown, its files are missing, or its loader fails.
    """
    _check_registration(name)
    metadata = MetadataCatalog.get(name)
    if from_json and _is_coco(name):
        return load_coco(metadata.json_file, metadata.get("image_root") or "", train, name)
    records = _load(name)
    panoptic = isinstance(records, list) and any(map(is_panoptic, records))
    if panoptic:
        # Raises if things and stuff are not counted as rows of one class head.
        PanopticCategories.from_metadata(metadata)
    return LoadedDataset(name, train, records, metadata.get("thing_classes"), panoptic=panoptic)


def _is_coco(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco" and bool(metadata.get("json_file"))


def _json_key(name: str) -> str:
    """Return the key in the metadata of the JSON file that a dataset is loaded from."""
    panoptic = MetadataCatalog.get(name).get("evaluator_type") == "coco_panoptic_seg"
    return "panoptic_json" if panoptic else "json_file"


def _check_registration(name: str) -> None:
    """Check that a dataset is registered and that its files exist."""
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        raise UserError(
            f"Dataset {name!r} is not registered: correct the name, or register it, e.g. with "
            f"detectron2.data.datasets.register_coco_instances.{hint}"
        )
    root = os.getenv("DETECTRON2_DATASETS")
    for key in (_json_key(name), "image_root", "panoptic_root"):
        path = MetadataCatalog.get(name).get(key)
        if not path or not is_missing(path):
            continue
        hint = "correct the path it was registered with."
        if path.startswith(os.path.join(os.path.expanduser(root or "datasets"), "")):
            state = f"it is {root}" if root else "it is not set, which means ./datasets"
            hint = f"set the environment variable DETECTRON2_DATASETS to the folder that holds your datasets ({state})."
        raise UserError(f"Dataset {name!r} needs {path}, which does not exist: {hint}")


def _load(name: str) -> Sequence[dict]:
    """Load the records of a dataset; add the path and the faults to errors of Detectron2's JSON reader."""
    json_file = MetadataCatalog.get(name).get(_json_key(name))
    try:
        records = DatasetCatalog.get(name)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        if json_file is None and not isinstance(error, OSError):
            raise
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        hint = _faults_in_file(name) or "In COCO's format category ids are whole numbers that 'categories' lists."
        raise UserError(
            f"Dataset {name!r} can't be loaded from {json_file or 'its files'} "
            f"({type(error).__name__}: {reason}): correct the file. {hint}"
        ) from error
    if len(records) == 0:
        raise UserError(f"Dataset {name!r} has no images: correct {json_file or 'its source'}.")
    return records


def _faults_in_file(name: str) -> str:
    """Describe the errors in the COCO file of a dataset that Detectron2 can't read, if any are found."""
    if not _is_coco(name):
        return ""
    metadata = MetadataCatalog.get(name)
    try:
        records, _, findings = read_coco_file(metadata.json_file, metadata.get("image_root") or "", train=True)
    except UserError as error:
        return str(error)
    findings += check_annotations(AnnotationTable(records), Expectations(train=False))
    errors = [x.message for x in findings if x.severity == "error"]
    return "Found in it: " + " ".join(errors[:MAX_FAULTS_SHOWN]) if errors else ""
