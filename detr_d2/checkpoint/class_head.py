"""The class head, the one part of a checkpoint whose size depends on the data."""

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

HEAD = ("detr.class_embed.weight", "detr.class_embed.bias")
"""Rows are the foreground classes, then no-object."""

COCO_CLASSES = [x for x in COCO_CATEGORIES if x["isthing"]]
"""COCO's 80 thing classes, in the order of Detectron2's contiguous ids."""

COCO_ID_ROWS = 92
"""Rows of the original's COCO head: the category ids 0 to 90, 11 of them unused, then no-object."""

COCO_PANOPTIC_ID_ROWS = 251
"""Rows of the original's panoptic head: the category ids 0 to 249, then no-object."""

UNUSED_BIAS = -1e4
"""Bias of a row that stands for no class: neither softmax nor sigmoid ever chooses it, and half precision holds it."""

_COCO_ROWS = torch.tensor([x["id"] for x in COCO_CLASSES] + [COCO_ID_ROWS - 1])


def head_rows(tensors: dict[str, Tensor]) -> int | None:
    """Rows of the class head: classes and no-object. None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]


def contiguous_coco_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the head's 92 rows taken to 81: the 80 classes in contiguous order, then no-object."""
    return {name: x[_COCO_ROWS] if name in HEAD else x for name, x in tensors.items()}


def coco_id_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the head's 81 rows taken to 92, rows that are no class filled.

    The inverse of :func:`contiguous_coco_head` for those that are. The others get the weight 0 and the bias
    :data:`UNUSED_BIAS`.
    """
    spread = dict(tensors)
    for name, fill in zip(HEAD, (0.0, UNUSED_BIAS), strict=True):
        spread[name] = tensors[name].new_full((COCO_ID_ROWS, *tensors[name].shape[1:]), fill)
        spread[name][_COCO_ROWS] = tensors[name]
    return spread


def coco_names(rows: int) -> list[str | None] | None:
    """What the rows of a head over COCO stand for, without no-object; None for a row that is no class.

    Args:
        rows: 81, contiguous classes; 92, category ids; 251, category ids of things and stuff. Otherwise the head
            is not COCO's, and None is returned.
    """
    if rows == len(COCO_CLASSES) + 1:
        return [x["name"] for x in COCO_CLASSES]
    categories = {COCO_ID_ROWS: COCO_CLASSES, COCO_PANOPTIC_ID_ROWS: COCO_CATEGORIES}.get(rows)
    if categories is None:
        return None
    names = {x["id"]: x["name"] for x in categories}
    return [names.get(i) for i in range(rows - 1)]
