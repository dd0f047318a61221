"""Checks before a model is built, of faults that would make training fail late or go wrong silently."""

import logging
from collections.abc import Collection, Mapping, Sequence

from detectron2.config import CfgNode

from detr_d2.data.annotations import abbreviate
from detr_d2.data.checks.annotation_checks import AnnotationTable, check_annotations
from detr_d2.data.checks.dataset_loading import LoadedDataset, load_registered
from detr_d2.data.checks.findings import SEVERITIES, Expectations, Finding
from detr_d2.data.checks.image_checks import check_files_exist, check_image_files
from detr_d2.data.checks.report import CheckResult, DatasetReport, compute_statistics
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_ERRORS_SHOWN = 5
_LEVELS = {"warning": logging.WARNING, "note": logging.INFO}


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Check the datasets in ``DATASETS.TRAIN`` and ``DATASETS.TEST``; log their statistics and what is doubtful.

    Every dataset is loaded once more than Detectron2 loads it; images are not opened.

    Args:
        cfg: with the keys of ``add_detr_config``.
        train: whether the config is used for training. False checks ``DATASETS.TEST`` only.
        test: whether ``DATASETS.TEST`` is evaluated on. False checks ``DATASETS.TRAIN`` only.

    Raises:
        UserError: a dataset that is unknown, missing, malformed, without objects to learn from, or
            whose classes don't fit ``MODEL.DETR.NUM_CLASSES`` or another dataset's.
    """
    names = dataset_names(cfg, train, test)
    datasets = [load_registered(name, train and name in cfg.DATASETS.TRAIN) for name in names]
    for dataset in datasets:
        if not isinstance(dataset.records, list):
            logger.warning("Dataset %r is not a list of records: its annotations are not checked.", dataset.name)
    detr = cfg.MODEL.DETR
    result = check_loaded(datasets, detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, masks=cfg.MODEL.MASK_ON)
    errors = _log_or_return(result.between_datasets)
    for report in result.datasets:
        logger.info("Dataset %r: %s.", report.name, report.summary())
        errors += _log_or_return(report.findings, prefix=f"Dataset {report.name!r}: ")
    if len(errors) > MAX_ERRORS_SHOWN:
        more = f"… and {len(errors) - MAX_ERRORS_SHOWN} more: `detr-d2 check` lists all."
        errors = [*errors[:MAX_ERRORS_SHOWN], more]
    if errors:
        raise UserError("\n".join(errors))


def dataset_names(cfg: CfgNode, train: bool = True, test: bool = True) -> list[str]:
    """Return the datasets of a config, each once.

    Args:
        cfg: with ``DATASETS``.
        train: include those to train on.
        test: include those to evaluate on.
    """
    required = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[required]:
        raise UserError(f"DATASETS.{required} is empty: name at least one registered dataset.")
    return list(dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *(cfg.DATASETS.TEST if test else ())]))


def _log_or_return(findings: Sequence[Finding], prefix: str = "") -> list[str]:
    """Log warnings and notes; return the messages of errors."""
    for finding in findings:
        if finding.severity in _LEVELS:
            logger.log(_LEVELS[finding.severity], "%s%s", prefix, finding.message)
    return [prefix + finding.message for finding in findings if finding.severity == "error"]


def check_loaded(
    datasets: Sequence[LoadedDataset],
    num_classes: int | None = None,
    num_queries: int | None = None,
    open_images: bool = False,
    masks: bool = False,
) -> CheckResult:
    """Check datasets, and whether they fit each other and the model.

    Args:
        datasets: of those that are not lists of records only the classes are checked.
        num_classes: of the model; None if unknown.
        num_queries: the maximum number of objects that the model finds in an image; None if unknown.
        open_images: whether to open and decode all image files, which takes minutes for 100,000.
        masks: whether the model learns masks.
    """
    classes = {x.name: x.classes for x in datasets}
    lists = [x for x in datasets if isinstance(x.records, list)]
    between = [
        *_check_same_classes(classes),
        *_check_num_classes(classes, num_classes, [x.name for x in lists if x.panoptic]),
        *_check_shared_images(
            {x.name: x.records for x in lists if x.train}, {x.name: x.records for x in lists if not x.train}
        ),
    ]
    expectations = [Expectations(x.train, num_classes, num_queries, x.classes, masks and x.train) for x in lists]
    return CheckResult([_check(x, y, open_images) for x, y in zip(lists, expectations, strict=True)], between)


def _check(dataset: LoadedDataset, expected: Expectations, open_images: bool) -> DatasetReport:
    records = dataset.records
    table = AnnotationTable(records)
    files = [*check_files_exist(records), *check_files_exist(records, "pan_seg_file_name", "panoptic map")]
    findings = [*dataset.findings, *files, *check_annotations(table, expected)]
    if open_images:
        findings += check_image_files(records, dataset.name)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    statistics = compute_statistics(records, table, expected.classes)
    return DatasetReport(dataset.name, expected.num_queries, statistics, findings)


def _check_num_classes(
    classes: Mapping[str, Sequence[str] | None], num_classes: int | None, panoptic: Collection[str]
) -> list[Finding]:
    """Check that each dataset, by name, has ``num_classes`` classes (None: unknown); stuff counts in ``panoptic``."""
    findings = []
    for name, names in classes.items():
        if names is None or num_classes is None or len(names) == num_classes:
            continue
        noun = "class" if len(names) == 1 else "classes"
        noun = f"{noun} of things and stuff" if name in panoptic else f"thing {noun}"
        message = (
            f"MODEL.DETR.NUM_CLASSES is {num_classes} but dataset {name!r} has {len(names)} {noun} "
            f"({abbreviate(names)}): set MODEL.DETR.NUM_CLASSES {len(names)}. "
            "Do not count a no-object class."
        )
        findings.append(Finding("error", "num-classes", message, 1, name))
    return findings


def _check_same_classes(classes: Mapping[str, Sequence[str] | None]) -> list[Finding]:
    """Check that a class index means the same in all datasets, by name."""
    known = [(name, list(names)) for name, names in classes.items() if names is not None]
    findings = []
    for name, names in known[1:]:
        first, expected = known[0]
        if names != expected:
            message = (
                f"Datasets {first!r} and {name!r} have different classes: "
                f"{_describe_difference(first, expected, name, names)}. "
                "Give them the same categories in the same order."
            )
            findings.append(Finding("error", "classes-differ", message, 1, name))
    return findings


def _describe_difference(first: str, expected: Sequence[str], second: str, names: Sequence[str]) -> str:
    """Describe how the class names of the datasets ``first`` and ``second`` differ."""
    only_first = [item for item in expected if item not in names]
    only_second = [item for item in names if item not in expected]
    parts = [f"only {x!r} has {abbreviate(only)}" for x, only in ((first, only_first), (second, only_second)) if only]
    return "; ".join(parts) or f"the same names in another order, {abbreviate(expected)} and {abbreviate(names)}"


def _check_shared_images(
    trained: Mapping[str, Sequence[dict]], evaluated: Mapping[str, Sequence[dict]]
) -> list[Finding]:
    """Check that datasets which are only evaluated on share no image file with training datasets, by name."""
    files = {name: {record.get("file_name") for record in records} for name, records in trained.items()}
    findings = []
    for name, records in evaluated.items():
        for first, others in files.items():
            shared = [x["file_name"] for x in records if x.get("file_name") and x["file_name"] in others]
            if shared:
                message = (
                    f"{len(shared)} of {len(records)} images of dataset {name!r} are trained on in dataset {first!r}, "
                    f"e.g. {shared[0]}: AP on them says nothing about new images."
                )
                findings.append(Finding("warning", "images-shared", message, len(shared), shared[0]))
    return findings
