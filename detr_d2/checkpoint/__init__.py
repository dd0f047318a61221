"""Checkpoints: read safely, renamed to the native format, loaded strictly, written completely."""

from detr_d2.checkpoint.checkpointer import DetrCheckpointer
from detr_d2.checkpoint.formats import native_state_dict, split_training_only, to_native
from detr_d2.checkpoint.reading import allow_original_checkpoints, read_checkpoint

__all__ = [
    "DetrCheckpointer",
    "allow_original_checkpoints",
    "native_state_dict",
    "read_checkpoint",
    "split_training_only",
    "to_native",
]
