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


def head_rows(tensors: dict[str, Tensor]) -> int | None:
    """Rows of the class head: classes and no-object. None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]


def contiguous_coco_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the head's 92 rows taken to 81: the 80 classes in contiguous order, then no-object."""
    rows = torch.tensor([x["id"] for x in COCO_CLASSES] + [COCO_ID_ROWS - 1])
    return {name: x[rows] if name in HEAD else x for name, x in tensors.items()}
