"""Config keys, loading and checks."""

from detr_d2.config.defaults import PRECISIONS, add_detr_config, check_detr_config, check_precision, choice
from detr_d2.config.loading import find_config, load_config, packaged_config

__all__ = [
    "PRECISIONS",
    "add_detr_config",
    "check_detr_config",
    "check_precision",
    "choice",
    "find_config",
    "load_config",
    "packaged_config",
]
