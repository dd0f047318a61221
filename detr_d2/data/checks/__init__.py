"""Checks of a dataset before training: its statistics and faults."""

from detr_d2.data.checks.dataset_checks import (
    LoadedDataset,
    check_datasets,
    check_loaded,
    check_registered,
    dataset_names,
    load_coco,
    load_registered,
)
from detr_d2.data.checks.findings import CheckResult, format_result

__all__ = [
    "CheckResult",
    "LoadedDataset",
    "check_datasets",
    "check_loaded",
    "check_registered",
    "dataset_names",
    "format_result",
    "load_coco",
    "load_registered",
]
