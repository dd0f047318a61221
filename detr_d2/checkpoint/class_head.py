"""The class head, the one part of a checkpoint whose size depends on the data."""

import functools
from collections.abc import Mapping, Sequence
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


class _CocoHead(NamedTuple):
    """A head over COCO's category ids, as the original publishes them."""

    names: list[str]
    """Of the contiguous classes."""
    rows: list[int]
    """Of the contiguous classes and of no-object, which is the last row."""

    @property
    def num_rows(self) -> int:
        return self.rows[-1] + 1


@functools.cache
def _coco_heads() -> tuple[_CocoHead, ...]:
    """Return the heads of the ids 0 to 90, of which 80 are things, and of 0 to 249, of which 53 more are stuff."""
    panoptic = coco_panoptic_categories()
    things = _CocoHead([x["name"] for x in COCO_CLASSES], [*(x["id"] for x in COCO_CLASSES), 91])
    return things, _CocoHead(panoptic.names, panoptic.published_rows())


def _by_ids(rows: int | None) -> _CocoHead | None:
    return next((x for x in _coco_heads() if x.num_rows == rows), None)


def _contiguous(rows: int | None) -> _CocoHead | None:
    return next((x for x in _coco_heads() if len(x.rows) == rows), None)


def head_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the class head, classes and no-object; None if there is no head."""
    weight = tensors.get(HEAD[0])
    return None if weight is None else weight.shape[0]


def has_coco_id_rows(tensors: Mapping[str, Tensor]) -> bool:
    """Check whether the head has as many rows as the published ones over COCO's category ids: 92 or 251."""
    return _by_ids(head_rows(tensors)) is not None


def contiguous_classes(tensors: Mapping[str, Tensor]) -> list[str] | None:
    """Return the class names of a head over COCO's category ids, in contiguous order; None for other heads."""
    coco = _by_ids(head_rows(tensors))
    return coco and list(coco.names)


def contiguous_coco_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a head over COCO's category ids to the contiguous classes, then no-object.

    92 rows become 81, of things; 251 become 134, of things and then stuff.
    """
    rows = _by_ids(head_rows(tensors)).rows
    return {name: x[rows] if name in HEAD else x for name, x in tensors.items()}


def coco_id_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the head that :func:`coco_id_head` makes; None if the head can't be COCO's."""
    coco = _contiguous(head_rows(tensors))
    return coco and coco.num_rows


def coco_id_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a head of 81 or 134 contiguous rows to the 92 or 251 rows of the category ids.

    The inverse of :func:`contiguous_coco_head`. Rows that are no class get the weight 0 and the bias
    :data:`UNUSED_BIAS`.
    """
    coco = _contiguous(head_rows(tensors))
    spread = dict(tensors)
    for name, fill in zip(HEAD, (0.0, UNUSED_BIAS), strict=True):
        spread[name] = tensors[name].new_full((coco.num_rows, *tensors[name].shape[1:]), fill)
        spread[name][coco.rows] = tensors[name]
    return spread


def coco_names(rows: int) -> list[str | None] | None:
    """Return the class names by row of a head over COCO, without no-object; None for a row that is no class.

    Args:
        rows: 81, contiguous classes; 92, category ids; 134 and 251, the same of things and stuff. For other numbers
            the head is not COCO's, and None is returned.
    """
    if coco := _contiguous(rows):
        return list(coco.names)
    if coco := _by_ids(rows):
        names = dict(zip(coco.rows, coco.names, strict=False))
        return [names.get(i) for i in range(rows - 1)]
    return None


class ClassMatch(NamedTuple):
    """The classes of a model that a file contains, and those that it does not."""

    found: list[str]
    new: list[str]

    def __str__(self) -> str:
        text = f"class_embed by name: {len(self.found)} of {len(self.found) + len(self.new)} classes loaded"
        found = f" ({_shorten(self.found)})" if self.found else ""
        return text + found + (f", new: {_shorten(self.new)}" if self.new else "")


def select_classes(
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    names_in_file: Sequence[str | None],
    model_names: Sequence[str],
) -> tuple[dict[str, Tensor], ClassMatch]:
    """Bring the rows of the class head to the model's order by the classes' names, regardless of case.

    Args:
        tensors, model: each with a head. The last row, no-object, goes to the last one.
        names_in_file: of the rows in ``tensors``, without no-object; None for a row that is no class.
        model_names: of the classes of ``model``. Rows of new classes stay as in ``model``.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(names_in_file):
        if name is not None:
            rows.setdefault(_key(name), row)
    found = [i for i, name in enumerate(model_names) if _key(name) in rows]
    source = [rows[_key(model_names[i])] for i in found]
    selected = dict(tensors)
    for name in HEAD:
        selected[name] = model[name].detach().clone()
        selected[name][[*found, -1]] = tensors[name][[*source, -1]].to(selected[name])
    new = [name for i, name in enumerate(model_names) if i not in found]
    return selected, ClassMatch([model_names[i] for i in found], new)


def _key(name: str) -> str:
    return name.strip().casefold()


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
