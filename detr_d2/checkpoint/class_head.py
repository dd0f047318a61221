"""The class head, the one part of a checkpoint whose size depends on the data."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from detr_d2.data.panoptic import coco_panoptic_categories, published_panoptic_rows

HEAD = ("detr.class_embed.weight", "detr.class_embed.bias")
"""Names of the head's tensors, whose rows are the foreground classes, then no-object."""

COCO_CLASSES = [x for x in COCO_CATEGORIES if x["isthing"]]
"""COCO's 80 thing classes, in the order of Detectron2's contiguous ids."""

UNUSED_BIAS = -1e4
"""Bias of an unused row: neither softmax nor sigmoid ever chooses it, and half precision can represent it."""


class CocoHead(NamedTuple):
    """A head that the original publishes, with a row for every category id of COCO, and its contiguous classes."""

    names: list[str]  # Names of the contiguous classes.
    rows: list[int]  # Rows of the contiguous classes in the head over category ids, then its last, no-object.

    @property
    def num_id_rows(self) -> int:
        return self.rows[-1] + 1

    @property
    def names_by_id(self) -> list[str | None]:
        """Names by row of the head over category ids, without no-object; None for unused rows."""
        names = dict(zip(self.rows[:-1], self.names, strict=True))
        return [names.get(i) for i in range(self.rows[-1])]

    def to_contiguous(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a head over category ids to one over the contiguous classes, then no-object."""
        return {name: x[self.rows] if name in HEAD else x for name, x in tensors.items()}

    def to_ids(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert :meth:`to_contiguous`. Unused rows get the weight 0 and the bias :data:`UNUSED_BIAS`."""
        spread = dict(tensors)
        for name, fill in zip(HEAD, (0.0, UNUSED_BIAS), strict=True):
            spread[name] = tensors[name].new_full((self.num_id_rows, *tensors[name].shape[1:]), fill)
            spread[name][self.rows] = tensors[name]
        return spread


@functools.cache
def _coco_heads() -> tuple[dict[int, CocoHead], dict[int, CocoHead]]:
    """Return COCO's heads by their number of rows: those over category ids, and those over contiguous classes."""
    things = CocoHead([x["name"] for x in COCO_CLASSES], [*(x["id"] for x in COCO_CLASSES), 91])
    heads = things, CocoHead(coco_panoptic_categories().names, published_panoptic_rows())
    return {x.num_id_rows: x for x in heads}, {len(x.rows): x for x in heads}


def coco_head_by_ids(rows: int | None) -> CocoHead | None:
    """Return COCO's head with ``rows`` rows by category id: 92, or 251 of things and stuff; None for others."""
    return _coco_heads()[0].get(rows)


def coco_head_contiguous(rows: int | None) -> CocoHead | None:
    """Return COCO's head with ``rows`` contiguous rows: 81, or 134 of things and then stuff; None for others."""
    return _coco_heads()[1].get(rows)


def coco_names(rows: int) -> list[str | None] | None:
    """Return the names of COCO's classes by row of a head of either kind, without no-object; None for other heads.

    In the list, None stands for an unused row.
    """
    if coco := coco_head_contiguous(rows):
        return list(coco.names)
    return coco.names_by_id if (coco := coco_head_by_ids(rows)) else None


def head_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the class head, classes and no-object; None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]
