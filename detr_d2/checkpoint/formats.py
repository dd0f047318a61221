"""The checkpoint formats that our model is loaded from, and those that it is written in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_d2.checkpoint.class_head import contiguous_classes, contiguous_coco_head
from detr_d2.checkpoint.comparison import group_names
from detr_d2.checkpoint.in_proj import join_in_proj, split_in_proj
from detr_d2.checkpoint.key_maps import huggingface, native, original, resnet
from detr_d2.checkpoint.key_maps.base import CheckpointFormat
from detr_d2.checkpoint.key_maps.unsupported import UNSUPPORTED
from detr_d2.utils.errors import UserError

FORMATS = (
    native.NATIVE,
    original.SMCA,
    original.BOX,
    original.SEGMENTATION,
    native.WRAPPER_SEGMENTATION,
    huggingface.BOX,
    huggingface.SEGMENTATION,
    resnet.TORCHVISION,
    resnet.DETECTRON2,
)
"""Every format that is read. A new one is a key map in ``key_maps`` and an entry here; the first that fits counts."""

EXPORTS = {"original": original.BOX, "huggingface": huggingface.BOX}
"""Every format that is written beside our own, by the name that converter.py has for it."""

MASK_EXPORTS = {"original": original.SEGMENTATION}
"""Those that models with a mask head are written in."""

_MASK_PARTS = ("detr.bbox_attention.", "detr.mask_head.")

# Under which keys a training run keeps its weights.
_WEIGHT_KEYS = ("model", "state_dict")
_PARALLEL_PREFIX = "module."


@dataclass(frozen=True)
class NativeWeights:
    """A checkpoint's weights under our names."""

    tensors: dict[str, Tensor]
    format: CheckpointFormat
    left_out: list[str]
    """Names, in the file, of what has no place in our model: mask heads, classifiers, counters."""
    class_names: list[str] | None = None
    """The head's classes, where the format tells."""


def find_format(names: Iterable[str]) -> CheckpointFormat | None:
    """The format that the names of a checkpoint's tensors tell, None if it is none that we read."""
    names = list(names)
    if any(x.matches(names) for x in UNSUPPORTED):
        return None
    return next((x for x in FORMATS if x.matches(names)), None)


def recognise(names: Iterable[str], source: str = "The checkpoint") -> CheckpointFormat:
    """As :func:`find_format`.

    Raises:
        UserError: it is none that we read; the message says what ``source`` looks like and what can be read.
    """
    names = list(names)
    if found := find_format(names):
        return found
    what = next((x.name for x in UNSUPPORTED if x.matches(names)), None)
    examples = ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "nothing"
    looks = f"is {what}" if what else f"is of no known format; it holds {examples}"
    raise UserError(f"{source} {looks}. What can be loaded: {', '.join(x.name for x in FORMATS)}.")


def extract_weights(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights in what a file holds: under "model", under "state_dict", or the whole dict.

    Returns:
        The tensors, arrays made tensors, names without the ``module.`` of a data-parallel model; and the names
        of the other entries.
    """
    weights = next((checkpoint[x] for x in _WEIGHT_KEYS if isinstance(checkpoint.get(x), dict)), checkpoint)
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray | Tensor):
            tensors[str(name)] = value.detach() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
    others = [str(name) for name in weights if str(name) not in tensors]
    if tensors and all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL_PREFIX): x for name, x in tensors.items()}
    return tensors, others


def to_native(
    checkpoint: dict[str, Any],
    num_classes: int | None = None,
    source: str = "The checkpoint",
    *,
    contiguous: bool = False,
) -> NativeWeights:
    """Bring what a file holds to our names.

    Args:
        checkpoint: as :func:`~detr_d2.checkpoint.reading.read_checkpoint` returns it.
        num_classes: of the model that is to be loaded. With 80, a head over COCO's category ids (92 rows) becomes
            one over the 80 contiguous classes (81 rows); with 133, one of things and stuff (251 rows) becomes one of
            134 rows.
        source: what error messages call it.
        contiguous: bring both to contiguous classes, whatever the number.

    Raises:
        UserError: the format is not known.
    """
    weights, left_out = extract_weights(checkpoint)
    found = recognise(weights or checkpoint, source)
    names = {name: found.native_name(name) for name in weights}
    tensors = {names[name]: x for name, x in weights.items() if names[name] is not None}
    left_out += [name for name in weights if names[name] is None]
    if found.splits_in_proj:
        tensors = join_in_proj(tensors)
    class_names = None
    names = contiguous_classes(tensors) if found.has_coco_ids else None
    if names is not None and (contiguous or num_classes == len(names)):
        tensors = contiguous_coco_head(tensors)
        class_names = list(names)
    return NativeWeights(tensors, found, left_out, class_names)


def is_of_masks(name: str) -> bool:
    """Whether a tensor of ours belongs to the mask head."""
    return name.startswith(_MASK_PARTS)


def from_native(tensors: dict[str, Tensor], target: CheckpointFormat) -> dict[str, Tensor]:
    """Bring tensors under our names to those of another format; :func:`to_native` leads back to equal ones.

    Raises:
        UserError: the format has no name for one of them.
    """
    if target.splits_in_proj:
        tensors = split_in_proj(tensors)
    names = {name: target.foreign_name(name) for name in tensors}
    if nameless := [name for name, foreign in names.items() if foreign is None]:
        raise UserError(f"{target.name} has no names for {group_names(nameless)}: choose another format to write.")
    return {names[name]: x for name, x in tensors.items()}


def native_state_dict(state_dict: dict[str, Tensor], num_classes: int, masks: bool = True) -> dict[str, Tensor]:
    """For a model's own loading: foreign names become ours, all else is handed back as it is.

    Args:
        masks: False leaves out the mask head of a foreign segmentation model.

    Returns:
        ``state_dict`` itself if it has our names already or is of no known format; torch then reports what is
        missing. Otherwise a new dict, its head in COCO's contiguous order if ``num_classes`` is 80 or 133.
    """
    found = find_format(state_dict)
    if found is None or (found is native.NATIVE and not any(found.native_name(x) is None for x in state_dict)):
        return state_dict
    tensors = to_native(state_dict, num_classes).tensors
    return tensors if masks else {name: x for name, x in tensors.items() if not is_of_masks(name)}
