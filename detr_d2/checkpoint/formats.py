"""The checkpoint formats that our model is loaded from and written in, and the conversion of state dicts."""

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
from detr_d2.utils.errors import UserError, abbreviate

FORMATS = (
    *(key_maps.NATIVE, key_maps.SMCA, key_maps.ORIGINAL, key_maps.ORIGINAL_SEGMENTATION),
    *(key_maps.WRAPPER_SEGMENTATION, HUGGINGFACE, HUGGINGFACE_SEGMENTATION),
    *(key_maps.TORCHVISION_RESNET, key_maps.DETECTRON2_RESNET),
)
"""Every format that is read. A new one is a key map and an entry here; the first that matches counts."""

EXPORTS = {"original": key_maps.ORIGINAL, "huggingface": HUGGINGFACE}
"""Every format that is written beside our own, by its name on the command line."""

_MASK_HEAD = ("detr.bbox_attention.", "detr.mask_head.")


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
    found = _first_match(names)
    return found if found in FORMATS else None


def recognize(names: Iterable[str], source: str = "The checkpoint") -> CheckpointFormat:
    """Return the supported format with tensors of these names, or raise a UserError that says what can be loaded."""
    names = list(names)
    found = _first_match(names)
    if found in FORMATS:
        return found
    looks = f"is {found.name}" if found else f"is of no known format; it holds {abbreviate(names, 3) or 'nothing'}"
    raise UserError(f"{source} {looks}. What can be loaded: {', '.join(x.name for x in FORMATS)}.")


def _first_match(names: Iterable[str]) -> CheckpointFormat | None:
    names = list(names)
    return next((x for x in (*key_maps.UNSUPPORTED, *FORMATS) if x.matches(names)), None)


def without_mask_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, under our names, that do not belong to the mask head."""
    return {name: x for name, x in tensors.items() if not name.startswith(_MASK_HEAD)}


def has_mask_head(tensors: dict[str, Tensor]) -> bool:
    """Check whether tensors, under our names, hold a mask head."""
    return any(name.startswith(_MASK_HEAD) for name in tensors)


def _extract_weights(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights in a file: under "model", under "state_dict", or the whole dict; and names of other entries.

    Arrays become tensors, and names lose the ``module.`` of a data-parallel model.
    """
    weights = next((checkpoint[x] for x in ("model", "state_dict") if isinstance(checkpoint.get(x), dict)), checkpoint)
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray | Tensor):
            tensors[str(name)] = value.detach() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
    others = [str(name) for name in weights if str(name) not in tensors]
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): x for name, x in tensors.items()}
    return tensors, others


def to_native(
    checkpoint: dict[str, Any], num_classes: int | None = None, source: str = "The checkpoint", contiguous: bool = False
) -> NativeWeights:
    """Bring the contents of a file to our names, or raise a UserError if its format is not known.

    Args:
        checkpoint: as :func:`~detr_d2.checkpoint.reading.read_checkpoint` returns it.
        num_classes: of the model to load. With 80, a head over COCO's category ids (92 rows) becomes one over the
            contiguous classes (81 rows); with 133, one of things and stuff (251 rows) becomes one of 134 rows.
        source: the file, for error messages.
        contiguous: bring both to contiguous classes, whatever the number.
    """
    weights, left_out = _extract_weights(checkpoint)
    found = recognize(weights or checkpoint, source)
    names = {name: found.native_name(name) for name in weights}
    tensors = {names[name]: x for name, x in weights.items() if names[name] is not None}
    left_out += [name for name in weights if names[name] is None]
    if found.splits_in_proj:
        tensors = _join_in_proj(tensors)
    coco = coco_head_by_ids(head_rows(tensors)) if found.has_coco_ids else None
    if coco is None or not (contiguous or num_classes == len(coco.names)):
        return NativeWeights(tensors, found, left_out)
    return NativeWeights(coco.to_contiguous(tensors), found, left_out, list(coco.names))


def from_native(tensors: dict[str, Tensor], target: CheckpointFormat) -> dict[str, Tensor]:
    """Invert :func:`to_native`; a UserError if ``target`` has no name for one of the tensors."""
    if target.splits_in_proj:
        tensors = _split_in_proj(tensors)
    names = {name: target.foreign_name(name) for name in tensors}
    if unnamed := [name for name, foreign in names.items() if foreign is None]:
        raise UserError(f"{target.name} has no names for {group_names(unnamed)}: choose another format to write.")
    return {names[name]: x for name, x in tensors.items()}


def native_state_dict(state_dict: dict[str, Tensor], num_classes: int, masks: bool = True) -> dict[str, Tensor]:
    """Bring the names in ``state_dict`` to ours, for a model's own loading; without ``masks`` leave out a mask head.

    Returns:
        ``state_dict`` itself if it has our names already or is of no known format; torch then reports what is
        missing. Otherwise a new dict, its head in COCO's contiguous order if ``num_classes`` is 80 or 133.
    """
    found = find_format(state_dict)
    if found is None or (found is key_maps.NATIVE and all(found.native_name(x) is not None for x in state_dict)):
        return state_dict
    tensors = to_native(state_dict, num_classes).tensors
    return tensors if masks else without_mask_head(tensors)


def _join_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack every ``q_proj``, ``k_proj`` and ``v_proj``, (C, C) or (C,), to ``in_proj_``, (3C, C) or (3C,).

    Where one of the three is missing, the others keep their names, so that comparing with a model finds them.
    """
    joined = dict(tensors)
    for name in tensors:
        prefix, is_query, kind = name.rpartition(".q_proj.")
        three = [f"{prefix}.{x}_proj.{kind}" for x in "qkv"]
        if is_query and all(x in tensors for x in three):
            joined[f"{prefix}.in_proj_{kind}"] = torch.cat([joined.pop(x) for x in three])
    return joined


def _split_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`_join_in_proj`. No two tensors share memory."""
    split = {}
    for name, x in tensors.items():
        prefix, is_joined, kind = name.rpartition(".in_proj_")
        if is_joined:
            split |= {f"{prefix}.{q}_proj.{kind}": y.clone() for q, y in zip("qkv", x.chunk(3), strict=True)}
        else:
            split[name] = x
    return split
