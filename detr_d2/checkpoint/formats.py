"""The checkpoint formats that our model is loaded from and written in, and the conversion of state dicts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_d2.checkpoint import key_maps
from detr_d2.checkpoint.architecture import group_names
from detr_d2.checkpoint.class_head import coco_head_by_ids, head_rows
from detr_d2.checkpoint.huggingface import HUGGINGFACE, HUGGINGFACE_SEGMENTATION
from detr_d2.checkpoint.key_maps import CheckpointFormat
from detr_d2.utils.errors import UserError

FORMATS = (
    *(key_maps.NATIVE, key_maps.SMCA, key_maps.ORIGINAL, key_maps.ORIGINAL_SEGMENTATION),
    *(key_maps.WRAPPER_SEGMENTATION, HUGGINGFACE, HUGGINGFACE_SEGMENTATION),
    *(key_maps.TORCHVISION_RESNET, key_maps.DETECTRON2_RESNET),
)
"""Every format that is read. A new one is a key map and an entry here; the first that matches counts."""

EXPORTS = {"original": key_maps.ORIGINAL, "huggingface": HUGGINGFACE}
"""Every format that is written beside our own, by its name on the command line."""

MASK_EXPORTS = {"original": key_maps.ORIGINAL_SEGMENTATION}
"""Those that models with a mask head are written in."""

_MASK_HEAD = ("detr.bbox_attention.", "detr.mask_head.")
# Keys under which a training run keeps its weights.
_WEIGHT_KEYS = ("model", "state_dict")
_PARALLEL_PREFIX = "module."


@dataclass(frozen=True)
class NativeWeights:
    """A checkpoint's weights under our names."""

    tensors: dict[str, Tensor]
    format: CheckpointFormat
    left_out: list[str]
    """Names, in the file, of tensors that our model does not have: classifiers, counters."""
    class_names: list[str] | None = None
    """Of the head's classes, where the format determines them."""


def find_format(names: Iterable[str]) -> CheckpointFormat | None:
    """Return the supported format with tensors of these names; None if there is none."""
    names = list(names)
    if any(x.matches(names) for x in key_maps.UNSUPPORTED):
        return None
    return next((x for x in FORMATS if x.matches(names)), None)


def recognize(names: Iterable[str], source: str = "The checkpoint") -> CheckpointFormat:
    """Return the supported format with tensors of these names.

    Raises:
        UserError: there is none; the message says what ``source`` looks like and what can be loaded.
    """
    names = list(names)
    if found := find_format(names):
        return found
    what = next((x.name for x in key_maps.UNSUPPORTED if x.matches(names)), None)
    examples = ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "nothing"
    looks = f"is {what}" if what else f"is of no known format; it holds {examples}"
    raise UserError(f"{source} {looks}. What can be loaded: {', '.join(x.name for x in FORMATS)}.")


def is_of_mask_head(name: str) -> bool:
    """Check whether a tensor of ours belongs to the mask head."""
    return name.startswith(_MASK_HEAD)


def extract_weights(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights in the contents of a file: under "model", under "state_dict", or the whole dict.

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
    """Bring the contents of a file to our names.

    Args:
        checkpoint: as :func:`~detr_d2.checkpoint.reading.read_checkpoint` returns it.
        num_classes: of the model that is to be loaded. With 80, a head over COCO's category ids (92 rows) becomes
            one over the 80 contiguous classes (81 rows); with 133, one of things and stuff (251 rows) becomes one of
            134 rows.
        source: the file, for error messages.
        contiguous: bring both to contiguous classes, whatever the number.

    Raises:
        UserError: the format is not known.
    """
    weights, left_out = extract_weights(checkpoint)
    found = recognize(weights or checkpoint, source)
    names = {name: found.native_name(name) for name in weights}
    tensors = {names[name]: x for name, x in weights.items() if names[name] is not None}
    left_out += [name for name in weights if names[name] is None]
    if found.splits_in_proj:
        tensors = join_in_proj(tensors)
    coco = coco_head_by_ids(head_rows(tensors)) if found.has_coco_ids else None
    if coco is None or not (contiguous or num_classes == len(coco.names)):
        return NativeWeights(tensors, found, left_out)
    return NativeWeights(coco.to_contiguous(tensors), found, left_out, list(coco.names))


def from_native(tensors: dict[str, Tensor], target: CheckpointFormat) -> dict[str, Tensor]:
    """Bring tensors under our names to those of another format; :func:`to_native` leads back to equal ones.

    Raises:
        UserError: the format has no name for one of them.
    """
    if target.splits_in_proj:
        tensors = split_in_proj(tensors)
    names = {name: target.foreign_name(name) for name in tensors}
    if unnamed := [name for name, foreign in names.items() if foreign is None]:
        raise UserError(f"{target.name} has no names for {group_names(unnamed)}: choose another format to write.")
    return {names[name]: x for name, x in tensors.items()}


def native_state_dict(state_dict: dict[str, Tensor], num_classes: int, masks: bool = True) -> dict[str, Tensor]:
    """Bring the names in ``state_dict`` to ours, for a model's own loading.

    Args:
        masks: False leaves out the mask head of a foreign segmentation model.

    Returns:
        ``state_dict`` itself if it has our names already or is of no known format; torch then reports what is
        missing. Otherwise a new dict, its head in COCO's contiguous order if ``num_classes`` is 80 or 133.
    """
    found = find_format(state_dict)
    if found is None or (found is key_maps.NATIVE and all(found.native_name(x) is not None for x in state_dict)):
        return state_dict
    tensors = to_native(state_dict, num_classes).tensors
    return tensors if masks else {name: x for name, x in tensors.items() if not is_of_mask_head(name)}


def join_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack every ``q_proj``, ``k_proj`` and ``v_proj``, (C, C) or (C,), to ``in_proj_``, (3C, C) or (3C,).

    Where one of the three is missing, the others keep their names, so that comparing with a model finds them.
    """
    joined = dict(tensors)
    for name in tensors:
        if not (match := re.fullmatch(r"(.+)\.q_proj\.(weight|bias)", name)):
            continue
        three = [f"{match[1]}.{x}_proj.{match[2]}" for x in "qkv"]
        if all(x in tensors for x in three):
            joined[f"{match[1]}.in_proj_{match[2]}"] = torch.cat([joined.pop(x) for x in three])
    return joined


def split_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split every ``in_proj_``: the inverse of :func:`join_in_proj`. No two tensors share memory."""
    split = {}
    for name, x in tensors.items():
        if match := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", x.chunk(3), strict=True):
                split[f"{match[1]}.{letter}_proj.{match[2]}"] = part.clone()
        else:
            split[name] = x
    return split
