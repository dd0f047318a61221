"""Config keys, loading and checks."""

from detr_d2.config.defaults import PRECISIONS, add_detr_config, check_detr_config, check_precision, choice

__all__ = ["PRECISIONS", "add_detr_config", "check_detr_config", "check_precision", "choice"]
