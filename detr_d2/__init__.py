"""DETR for Detectron2: importing this package registers it."""

from detr_d2.config import add_detr_config

__version__ = "0.1.0"

__all__ = ["add_detr_config"]
