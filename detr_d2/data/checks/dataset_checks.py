"""What must hold of the datasets before a model is built: otherwise training would fail late, or silently."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode

from detr_d2.data.checks.dataset_loading import load_registered
from detr_d2.data.checks.dataset_report import check_loaded
from detr_d2.data.checks.findings import Finding
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_ERRORS_SHOWN = 5
_LEVELS = {"warning": logging.WARNING, "note": logging.INFO}


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Check the datasets in ``DATASETS.TRAIN`` and ``DATASETS.TEST``; logs their figures and what is doubtful.

    Every dataset is loaded once more than Detectron2 loads it; images are not opened.

    Args:
        cfg: with the keys of ``add_detr_config``.
        train: whether training is meant. False checks ``DATASETS.TEST`` only.
        test: whether ``DATASETS.TEST`` is evaluated on. False checks ``DATASETS.TRAIN`` only.

    Raises:
        UserError: a dataset that is unknown, missing, malformed, without objects to learn from, or
            whose classes don't fit ``MODEL.DETR.NUM_CLASSES`` or another dataset's.
    """
    names = dataset_names(cfg, train, test)
    datasets = [load_registered(name, train and name in cfg.DATASETS.TRAIN) for name in names]
    for dataset in datasets:
        if not isinstance(dataset.records, list):
            logger.warning("Dataset %r is no list of records: its annotations are not checked.", dataset.name)
    detr = cfg.MODEL.DETR
    result = check_loaded(datasets, detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, masks=cfg.MODEL.MASK_ON)
    errors = _log_or_keep(result.between_datasets)
    for report in result.datasets:
        logger.info("Dataset %r: %s.", report.name, report.summary())
        errors += _log_or_keep(report.findings, prefix=f"Dataset {report.name!r}: ")
    if errors:
        raise UserError(_join(errors))


def dataset_names(cfg: CfgNode, train: bool = True, test: bool = True) -> list[str]:
    """The datasets of a config, each once: with ``train`` those to train on, with ``test`` those to evaluate on."""
    wanted = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[wanted]:
        raise UserError(f"DATASETS.{wanted} is empty: name at least one registered dataset.")
    return list(dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *(cfg.DATASETS.TEST if test else ())]))


def _log_or_keep(findings: Sequence[Finding], prefix: str = "") -> list[str]:
    """Log warnings and notes; hand back the messages of errors."""
    for finding in findings:
        if finding.severity in _LEVELS:
            logger.log(_LEVELS[finding.severity], "%s%s", prefix, finding.message)
    return [prefix + finding.message for finding in findings if finding.severity == "error"]


def _join(errors: Sequence[str]) -> str:
    left = len(errors) - MAX_ERRORS_SHOWN
    more = [f"… and {left} more: tools/check_dataset.py lists all."] if left > 0 else []
    return "\n".join([*errors[:MAX_ERRORS_SHOWN], *more])
