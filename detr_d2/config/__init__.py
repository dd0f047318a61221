"""Config keys, loading and checks."""

from detr_d2.config.checks import (
    PRECISIONS,
    check_model_config,
    check_precision,
    check_training_config,
    choice,
    reads_masks,
)
from detr_d2.config.defaults import TRAINING_ONLY, add_detr_config
from detr_d2.config.lazy import load_lazy_config
from detr_d2.config.loading import find_config, load_config, packaged_config
from detr_d2.config.pixel_checks import check_pixel_statistics, file_channels, log_pixel_warnings

__all__ = [
    "PRECISIONS",
    "TRAINING_ONLY",
    "add_detr_config",
    "check_model_config",
    "check_pixel_statistics",
    "check_precision",
    "check_training_config",
    "choice",
    "file_channels",
    "find_config",
    "load_config",
    "load_lazy_config",
    "log_pixel_warnings",
    "packaged_config",
    "reads_masks",
]
