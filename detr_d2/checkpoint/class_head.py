"""The class head, the one part of a checkpoint whose size depends on the data."""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from detr_d2.data.panoptic import coco_panoptic_categories

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

_CONTIGUOUS = {
    COCO_ID_ROWS: ([x["name"] for x in COCO_CLASSES], [x["id"] for x in COCO_CLASSES] + [COCO_ID_ROWS - 1]),
    COCO_PANOPTIC_ID_ROWS: (coco_panoptic_categories().names, coco_panoptic_categories().published_rows()),
}
"""For heads over COCO's category ids, by their rows: the contiguous classes, and the rows of these and of no-object."""


def head_rows(tensors: dict[str, Tensor]) -> int | None:
    """Rows of the class head: classes and no-object. None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]


def contiguous_classes(tensors: dict[str, Tensor]) -> list[str] | None:
    """The names of the classes that a head over COCO's category ids has, in contiguous order; None for other heads."""
    return _CONTIGUOUS.get(head_rows(tensors), (None,))[0]


def contiguous_coco_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with a head over COCO's category ids made contiguous, then no-object.

    92 rows become 81, of things; 251 become 134, of things and then stuff.
    """
    rows = _CONTIGUOUS[head_rows(tensors)][1]
    return {name: x[rows] if name in HEAD else x for name, x in tensors.items()}


def coco_id_rows(tensors: dict[str, Tensor]) -> int | None:
    """How many rows the head over category ids has that :func:`coco_id_head` makes; None if it can't be COCO's."""
    return {len(names) + 1: by_id for by_id, (names, _) in _CONTIGUOUS.items()}.get(head_rows(tensors))


def coco_id_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with a head of 81 or 134 contiguous rows taken to 92 or 251, rows that are no class filled.

    The inverse of :func:`contiguous_coco_head` for those that are. The others get the weight 0 and the bias
    :data:`UNUSED_BIAS`.
    """
    by_id = coco_id_rows(tensors)
    rows = _CONTIGUOUS[by_id][1]
    spread = dict(tensors)
    for name, fill in zip(HEAD, (0.0, UNUSED_BIAS), strict=True):
        spread[name] = tensors[name].new_full((by_id, *tensors[name].shape[1:]), fill)
        spread[name][rows] = tensors[name]
    return spread


def coco_names(rows: int) -> list[str | None] | None:
    """What the rows of a head over COCO stand for, without no-object; None for a row that is no class.

    Args:
        rows: 81, contiguous classes; 92, category ids; 134 and 251, the same of things and stuff. Otherwise the head
            is not COCO's, and None is returned.
    """
    for names, _ in _CONTIGUOUS.values():
        if rows == len(names) + 1:
            return list(names)
    categories = {COCO_ID_ROWS: COCO_CLASSES, COCO_PANOPTIC_ID_ROWS: COCO_CATEGORIES}.get(rows)
    if categories is None:
        return None
    names = {x["id"]: x["name"] for x in categories}
    return [names.get(i) for i in range(rows - 1)]
