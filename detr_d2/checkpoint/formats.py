"""The checkpoint formats that a model is loaded from and written in, and the conversion of state dicts.

The native format has the names of the model's own state dict.
"""

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
"""Every format that is written in addition to the native one, by its name on the command line."""

_TRAINING_ONLY = ("training_queries.", "dense_supervision.")
_MASK_HEAD = ("detr.bbox_attention.", "detr.mask_head.")


@dataclass(frozen=True)
class NativeWeights:
    """A checkpoint's weights under native names."""

    tensors: dict[str, Tensor]
    format: CheckpointFormat
    left_out: list[str]  # Names, in the file, of tensors that the model does not have: classifiers, counters.
    class_names: list[str] | None = None  # Names of the head's classes, where the format determines them.


def find_format(names: Iterable[str]) -> CheckpointFormat | None:
    """Return the first format, supported or known only by name, with tensors of these names; None if there is none."""
    names = list(names)
    return next((x for x in (*key_maps.UNSUPPORTED, *FORMATS) if x.matches(names)), None)


def recognize(names: Iterable[str], source: str = "The checkpoint") -> CheckpointFormat:
    """Return the supported format with tensors of these names. If there is none, a UserError lists the formats."""
    names = list(names)
    match = find_format(names)
    if match in FORMATS:
        return match
    looks = f"is {match.name}" if match else f"is of no known format; it holds {abbreviate(names, 3) or 'nothing'}"
    raise UserError(f"{source} {looks}. What can be loaded: {', '.join(x.name for x in FORMATS)}.")


def without_mask_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, under native names, that do not belong to the mask head."""
    return {name: x for name, x in tensors.items() if not name.startswith(_MASK_HEAD)}


def split_training_only(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict of our model into that of a plain model and the training-only tensors."""
    plain = {name: x for name, x in tensors.items() if not name.startswith(_TRAINING_ONLY)}
    return plain, {name: x for name, x in tensors.items() if name not in plain}


def has_mask_head(tensors: dict[str, Tensor]) -> bool:
    """Check whether tensors, under native names, hold a mask head."""
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
    """Rename the keys of a checkpoint to the native format.

    If the model has 80 classes, a head over COCO's category ids (92 rows) becomes one over the contiguous classes (81
    rows); if it has 133, one of things and stuff (251 rows) becomes one of 134 rows. ``contiguous`` converts both for
    any model.

    Args:
        checkpoint: contents of a file, from :func:`~detr_d2.checkpoint.reading.read_checkpoint`.
        source: name of the file in error messages.

    Raises:
        UserError: the format is not known, or weights are not floating point numbers.
    """
    weights, left_out = _extract_weights(checkpoint)
    source_format = recognize(weights or checkpoint, source)
    names = {name: source_format.native_name(name) for name in weights}
    tensors = {names[name]: x for name, x in weights.items() if names[name] is not None}
    left_out += [name for name in weights if names[name] is None]
    # Copied into a model, a mask of True and False or complex numbers would become weights without a word.
    values = {x: tensors[x] for x in tensors if x.endswith((".weight", ".bias"))}
    if wrong := [name for name, x in values.items() if not x.is_floating_point() or x.dim() == 0]:
        kind = f"{values[wrong[0]].dtype} values of shape {tuple(values[wrong[0]].shape)}"
        raise UserError(f"{source} holds {kind} for {group_names(wrong)}: weights are arrays of floats.")
    if source_format.splits_in_proj:
        tensors = _join_in_proj(tensors)
    coco = coco_head_by_ids(head_rows(tensors)) if source_format.has_coco_ids else None
    if coco is None or not (contiguous or num_classes == len(coco.names)):
        return NativeWeights(tensors, source_format, left_out)
    return NativeWeights(coco.to_contiguous(tensors), source_format, left_out, list(coco.names))


def from_native(tensors: dict[str, Tensor], target: CheckpointFormat) -> dict[str, Tensor]:
    """Invert :func:`to_native`. If ``target`` has no name for one of the tensors, raise a UserError."""
    if target.splits_in_proj:
        tensors = _split_in_proj(tensors)
    names = {name: target.foreign_name(name) for name in tensors}
    if unnamed := [name for name, foreign in names.items() if foreign is None]:
        raise UserError(f"{target.name} has no names for {group_names(unnamed)}: choose another format to write.")
    return {names[name]: x for name, x in tensors.items()}


def native_state_dict(state_dict: dict[str, Tensor], num_classes: int, masks: bool = True) -> dict[str, Tensor]:
    """Rename the keys of ``state_dict`` to the native format, for a model's own loading.

    Returns:
        ``state_dict`` itself if it has native names already or is of no supported format; torch then reports what is
        missing. Otherwise a new dict, its head in COCO's contiguous order if ``num_classes`` is 80 or 133, and without
        a mask head unless ``masks``.
    """
    match = find_format(state_dict)
    if match not in FORMATS or (match is key_maps.NATIVE and all(match.native_name(x) for x in state_dict)):
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
