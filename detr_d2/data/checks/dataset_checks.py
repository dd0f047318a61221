"""Checks, before a model is built, for faults that would make training fail late or give wrong results silently."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.config import reads_masks
from detr_d2.data.annotations import is_panoptic
from detr_d2.data.checks.annotation_checks import check_annotations, compute_statistics
from detr_d2.data.checks.annotation_table import AnnotationTable
from detr_d2.data.checks.coco_file import read_coco_file
from detr_d2.data.checks.findings import SEVERITIES, CheckResult, DatasetReport, Finding
from detr_d2.data.checks.image_checks import check_files_exist, check_image_files, is_missing
from detr_d2.data.panoptic import PanopticCategories
from detr_d2.utils.errors import UserError, abbreviate, did_you_mean

logger = logging.getLogger(__name__)

MAX_ERRORS_SHOWN = 5
MAX_FAULTS_SHOWN = 3
_LEVELS = {"warning": logging.WARNING, "note": logging.INFO}


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset to check."""

    name: str
    train: bool  # True if it is trained on, not only evaluated on.
    records: Sequence[dict]  # In Detectron2's format.
    classes: Sequence[str] | None  # Names by label; None if unknown.
    findings: Sequence[Finding] = ()  # Findings of the reader.
    panoptic: bool = False  # True if the classes are things and stuff.


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Check the datasets in ``DATASETS.TRAIN`` and ``DATASETS.TEST``; log their statistics and what is doubtful.

    Every dataset is loaded once more than Detectron2 loads it; images are not opened.

    Raises:
        UserError: a dataset is unknown, missing, malformed, without objects to learn from, or its classes don't fit
            ``MODEL.DETR.NUM_CLASSES`` or another dataset's.
    """
    names = {name: train and name in cfg.DATASETS.TRAIN for name in dataset_names(cfg, train, test)}
    detr = cfg.MODEL.DETR
    check_registered(names, detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, reads_masks(cfg))


def check_registered(names: Mapping[str, bool], num_classes: int, num_queries: int, masks: bool) -> None:
    """Check registered datasets as :func:`check_datasets` does.

    Args:
        names: True for datasets to train on, by name.
        num_classes, num_queries: numbers of the model.
        masks: True if objects to train on need masks.
    """
    datasets = [load_registered(name, train) for name, train in names.items()]
    for dataset in datasets:
        if not isinstance(dataset.records, list):
            logger.warning("Dataset %r is not a list of records: its annotations are not checked.", dataset.name)
    result = check_loaded(datasets, num_classes, num_queries, masks=masks)
    for report in result.datasets:
        logger.info("Dataset %r: %s.", report.name, report.summary())
    groups = [("", result.between_datasets), *((f"Dataset {x.name!r}: ", x.findings) for x in result.datasets)]
    errors = []
    for prefix, finding in ((prefix, finding) for prefix, findings in groups for finding in findings):
        if finding.severity == "error":
            errors.append(prefix + finding.message)
        else:
            logger.log(_LEVELS[finding.severity], "%s%s", prefix, finding.message)
    if len(errors) > MAX_ERRORS_SHOWN:
        more = f"… and {len(errors) - MAX_ERRORS_SHOWN} more: `detr-d2 check` lists all."
        errors = [*errors[:MAX_ERRORS_SHOWN], more]
    if errors:
        raise UserError("\n".join(errors))


def dataset_names(cfg: CfgNode, train: bool = True, test: bool = True) -> list[str]:
    """Return the datasets of a config to train on and to evaluate on, each once."""
    required = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[required]:
        raise UserError(f"DATASETS.{required} is empty: name at least one registered dataset.")
    return list(dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *(cfg.DATASETS.TEST if test else ())]))


def load_coco(json_file: str, image_root: str, train: bool, name: str | None = None) -> LoadedDataset:
    """Load a COCO file, with its faults as findings.

    If the file, the folder or a list that the format requires is missing, raise a UserError.
    """
    if is_missing(image_root):
        raise UserError(f"The image folder {image_root} does not exist: correct its path.")
    return LoadedDataset(name or json_file, train, *read_coco_file(json_file, image_root, train))


def load_registered(name: str, train: bool, from_json: bool = False) -> LoadedDataset:
    """Load a registered dataset.

    With ``from_json``, COCO's format is read by :func:`load_coco`, which finds more faults than Detectron2's reader.

    Raises:
        UserError: it is unknown, its files are missing, or its loader fails.
    """
    if name not in DatasetCatalog:
        raise UserError(
            f"Dataset {name!r} is not registered: correct the name, or register it, e.g. with "
            f"detectron2.data.datasets.register_coco_instances. {did_you_mean(name, DatasetCatalog.list())}".rstrip()
        )
    metadata = MetadataCatalog.get(name)
    evaluator = metadata.get("evaluator_type")
    json_file = metadata.get("panoptic_json" if evaluator == "coco_panoptic_seg" else "json_file")
    _check_paths(name, [json_file, metadata.get("image_root"), metadata.get("panoptic_root")])
    coco_file = (json_file, metadata.get("image_root") or "") if evaluator == "coco" and json_file else None
    if from_json and coco_file:
        return load_coco(*coco_file, train, name)
    records = _load(name, json_file, coco_file)
    panoptic = isinstance(records, list) and any(map(is_panoptic, records))
    if panoptic:
        # Raises if things and stuff are not counted as rows of one class head.
        PanopticCategories.from_metadata(metadata)
    return LoadedDataset(name, train, records, metadata.get("thing_classes"), panoptic=panoptic)


def _check_paths(name: str, paths: Sequence[str | None]) -> None:
    root = os.getenv("DETECTRON2_DATASETS")
    for path in paths:
        if not path or not is_missing(path):
            continue
        hint = "correct the path it was registered with."
        if path.startswith(os.path.join(os.path.expanduser(root or "datasets"), "")):
            state = f"it is {root}" if root else "it is not set, which means ./datasets"
            hint = f"set the environment variable DETECTRON2_DATASETS to the folder that holds your datasets ({state})."
        raise UserError(f"Dataset {name!r} needs {path}, which does not exist: {hint}")


def _load(name: str, json_file: str | None, coco_file: tuple[str, str] | None) -> Sequence[dict]:
    """Load the records of a dataset; add the path and the faults to errors of Detectron2's JSON reader."""
    try:
        records = DatasetCatalog.get(name)
    except UserError:
        raise
    except (
        *(OSError, ValueError, KeyError, TypeError, AssertionError, AttributeError, IndexError),
        *(OverflowError, RecursionError),
    ) as error:
        if json_file is None and not isinstance(error, OSError):
            raise
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        faults = _find_faults(*coco_file) if coco_file else ""
        hint = faults or "In COCO's format category ids are integers that 'categories' lists."
        raise UserError(
            f"Dataset {name!r} can't be loaded from {json_file or 'its files'} "
            f"({type(error).__name__}: {reason}): correct the file. {hint}"
        ) from error
    if len(records) == 0:
        raise UserError(f"Dataset {name!r} has no images: correct {json_file or 'its source'}.")
    return records


def _find_faults(json_file: str, image_root: str) -> str:
    """Describe the errors in a COCO file that Detectron2 can't read, if any are found."""
    try:
        records, _, findings = read_coco_file(json_file, image_root, train=True)
    except UserError as error:
        return str(error)
    findings += check_annotations(AnnotationTable(records), train=False)
    errors = [x.message for x in findings if x.severity == "error"]
    return "Found in it: " + " ".join(errors[:MAX_FAULTS_SHOWN]) if errors else ""


def check_loaded(
    datasets: Sequence[LoadedDataset],
    num_classes: int | None = None,
    num_queries: int | None = None,
    open_images: bool = False,
    masks: bool = False,
    channels: int = 3,
) -> CheckResult:
    """Check datasets, and whether they fit each other and the model.

    If a dataset is not a list of records, only its classes are checked.

    Args:
        num_classes, num_queries: numbers of the model; None if unknown.
        open_images: True to open and decode all image files, which takes minutes for 100,000.
        masks: True if objects to train on need masks.
        channels: number of bands of the image files; 3: any.
    """
    lists = [x for x in datasets if isinstance(x.records, list)]
    named = list({x.name: x for x in datasets if x.classes is not None}.values())
    between = [*_check_same_classes(named), *_check_num_classes(named, num_classes), *_check_shared_images(lists)]
    reports = []
    for x in lists:
        table = AnnotationTable(x.records)
        findings = [
            *x.findings,
            *check_files_exist(x.records),
            *check_files_exist(x.records, "pan_seg_file_name", "panoptic map"),
            *check_annotations(table, x.train, num_classes, num_queries, x.classes, masks and x.train),
            *(check_image_files(x.records, x.name, channels) if open_images else ()),
        ]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        reports.append(DatasetReport(x.name, num_queries, compute_statistics(table, x.classes), findings))
    return CheckResult(reports, between)


def _check_num_classes(datasets: Sequence[LoadedDataset], num_classes: int | None) -> Iterator[Finding]:
    for dataset in datasets:
        count = len(dataset.classes)
        if num_classes in (None, count):
            continue
        noun = "class" if count == 1 else "classes"
        noun = f"{noun} of things and stuff" if dataset.panoptic else f"thing {noun}"
        message = (
            f"MODEL.DETR.NUM_CLASSES is {num_classes} but dataset {dataset.name!r} has {count} {noun} "
            f"({abbreviate(dataset.classes)}): set MODEL.DETR.NUM_CLASSES {count}. Do not count a no-object class."
        )
        yield Finding("error", "num-classes", message, 1, dataset.name)


def _check_same_classes(datasets: Sequence[LoadedDataset]) -> Iterator[Finding]:
    """Check that a class index means the same in all datasets."""
    for dataset in datasets[1:]:
        first, classes, others = datasets[0], list(datasets[0].classes), list(dataset.classes)
        if classes == others:
            continue
        only = {
            first.name: [x for x in classes if x not in others],
            dataset.name: [x for x in others if x not in classes],
        }
        parts = [f"only {name!r} has {abbreviate(names)}" for name, names in only.items() if names]
        reordered = f"the same names in another order, {abbreviate(classes)} and {abbreviate(others)}"
        message = (
            f"Datasets {first.name!r} and {dataset.name!r} have different classes: {'; '.join(parts) or reordered}. "
            "Give them the same categories in the same order."
        )
        yield Finding("error", "classes-differ", message, 1, dataset.name)


def _check_shared_images(datasets: Sequence[LoadedDataset]) -> Iterator[Finding]:
    """Check that datasets which are only evaluated on share no image file with training datasets."""
    trained = {x.name: {record.get("file_name") for record in x.records} for x in datasets if x.train}
    for dataset in [x for x in datasets if not x.train]:
        for name, files in trained.items():
            shared = [x["file_name"] for x in dataset.records if x.get("file_name") and x["file_name"] in files]
            if shared:
                message = (
                    f"{len(shared)} of {len(dataset.records)} images of dataset {dataset.name!r} are trained on in "
                    f"dataset {name!r}, e.g. {shared[0]}: AP on them says nothing about new images."
                )
                yield Finding("warning", "images-shared", message, len(shared), shared[0])
