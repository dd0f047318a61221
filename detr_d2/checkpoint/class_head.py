"""The class head, the one part of a checkpoint whose size depends on the data."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from detr_d2.data.panoptic import coco_panoptic_categories

HEAD = ("detr.class_embed.weight", "detr.class_embed.bias")
"""Rows are the foreground classes, then no-object."""

COCO_CLASSES = [x for x in COCO_CATEGORIES if x["isthing"]]
"""COCO's 80 thing classes, in the order of Detectron2's contiguous ids."""

UNUSED_BIAS = -1e4
"""Bias of a row that is no class: neither softmax nor sigmoid ever chooses it, and half precision can represent it."""


class CocoHead(NamedTuple):
    """A head that the original publishes, with a row for every category id of COCO, and its contiguous classes."""

    names: list[str]
    """Of the contiguous classes."""
    rows: list[int]
    """By category id, of the contiguous classes and of no-object, which is the last row."""

    @property
    def num_id_rows(self) -> int:
        return self.rows[-1] + 1

    @property
    def names_by_id(self) -> list[str | None]:
        """Names by row without no-object; None for a row that is no class."""
        names = dict(zip(self.rows[:-1], self.names, strict=True))
        return [names.get(i) for i in range(self.rows[-1])]

    def to_contiguous(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring a head over category ids to the contiguous classes, then no-object."""
        return {name: x[self.rows] if name in HEAD else x for name, x in tensors.items()}

    def to_ids(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert :meth:`to_contiguous`. Rows that are no class get the weight 0 and the bias :data:`UNUSED_BIAS`."""
        spread = dict(tensors)
        for name, fill in zip(HEAD, (0.0, UNUSED_BIAS), strict=True):
            spread[name] = tensors[name].new_full((self.num_id_rows, *tensors[name].shape[1:]), fill)
            spread[name][self.rows] = tensors[name]
        return spread


@functools.cache
def _coco_heads() -> tuple[CocoHead, CocoHead]:
    panoptic = coco_panoptic_categories()
    things = CocoHead([x["name"] for x in COCO_CLASSES], [*(x["id"] for x in COCO_CLASSES), 91])
    return things, CocoHead(panoptic.names, panoptic.published_rows())


def coco_head_by_ids(rows: int | None) -> CocoHead | None:
    """Return COCO's head with ``rows`` rows by category id: 92, or 251 of things and stuff; None for others."""
    return next((x for x in _coco_heads() if x.num_id_rows == rows), None)


def coco_head_contiguous(rows: int | None) -> CocoHead | None:
    """Return COCO's head with ``rows`` contiguous rows: 81, or 134 of things and then stuff; None for others."""
    return next((x for x in _coco_heads() if len(x.rows) == rows), None)


def coco_names(rows: int) -> list[str | None] | None:
    """Return the names of COCO's classes by row of a head of either kind, without no-object; None for other heads.

    In the list, None stands for a row that is no class.
    """
    if coco := coco_head_contiguous(rows):
        return list(coco.names)
    return coco.names_by_id if (coco := coco_head_by_ids(rows)) else None


def head_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the class head, classes and no-object; None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]
