"""Annotations of a dataset as columns, which the checks read."""

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from detr_d2.data.annotations import (
    annotations_of,
    clip_boxes,
    has_area,
    is_crowd,
    is_panoptic,
    is_text,
    name_annotation,
    name_segment,
    read_box,
    read_category,
)
from detr_d2.utils.errors import UserError


class AnnotationTable:
    """Columns of the annotations of a dataset, so that a million of them are checked in seconds.

    A row is an annotation that is not a crowd; in panoptic records, a segment.

    Attributes:
        records: records of the dataset, in Detectron2's format.
        boxes: (N, 4) float32, absolute XYXY, as annotated; NaN where unreadable.
        clipped: (N, 4) boxes clipped to their images.
        classes: (N,) int64; -1 where unreadable.
        image_index: (N,) int64 index of the annotation's record.
        image_sizes: (N, 2) float32, height and width; infinite where the dataset has none.
        declared_xywh: (N,) bool, True if "bbox_mode" is XYWH_ABS.
        of_segments: (N,) bool, True for segments of a panoptic map.
        num_crowds: number of annotations that were left out as crowds.
        unreadable: (row, message) of every box or category that is missing, malformed or not finite.
    """

    def __init__(self, records: Sequence[dict]) -> None:
        self.records = records
        self.num_images = len(records)
        lists = self._lists = [annotations_of(record) for record in records]
        objects = [[item for item in items if not is_crowd(item)] for items in lists]
        self._items = [item for items in objects for item in items]
        self.image_index = np.repeat(np.arange(len(records)), [len(items) for items in objects])
        self.num_crowds = sum(map(len, lists)) - len(self._items)
        self.unreadable: list[tuple[int, str]] = []

        sizes = [_read_size(record) for record in records]
        self.image_sizes = np.array(sizes, dtype=np.float32).reshape(-1, 2)[self.image_index]
        self.declared_xywh = np.array([item.get("bbox_mode") == BoxMode.XYWH_ABS for item in self._items], bool)
        self.of_segments = np.array([is_panoptic(record) for record in records], bool)[self.image_index]
        self.boxes = self._read_boxes()
        self.clipped = clip_boxes(self.boxes, self.image_sizes.T)
        self.classes = self._read_classes()

    def __len__(self) -> int:
        return len(self._items)

    def name(self, row: int) -> str:
        """Return the display name of the annotation of a row, used in messages."""
        item, image = self._items[row], self.image_index[row]
        record = self.records[image]
        if self.of_segments[row]:
            return name_segment(item, record)
        position = next(index for index, other in enumerate(self._lists[image]) if other is item)
        return name_annotation(item, position, record["file_name"])

    def annotations(self) -> Iterator[tuple[dict, dict]]:
        """Yield every annotation, crowds included, after its record."""
        return ((record, item) for record, items in zip(self.records, self._lists, strict=True) for item in items)

    def without_mask(self) -> np.ndarray:
        """Return the rows without a segmentation to rasterize."""
        missing = [_is_empty(item.get("segmentation")) for item in self._items]
        return np.flatnonzero(np.array(missing, bool) & ~self.of_segments)

    def is_readable(self) -> np.ndarray:
        """Return (N,) bool, True where all four numbers of the box are known."""
        return np.isfinite(self.boxes).all(axis=1)

    def usable(self) -> np.ndarray:
        """Return (N,) bool, True where the box is readable and has an area inside its image, and the class is known."""
        return self.is_readable() & has_area(self.clipped) & (self.classes >= 0)

    def without_area(self) -> np.ndarray:
        """Return the rows whose box has no area inside its image."""
        return np.flatnonzero(self.is_readable() & ~has_area(self.clipped))

    def _read_boxes(self) -> np.ndarray:
        """Read all well-formed boxes of a mode at once; the others one by one, for the message."""
        boxes = np.full((len(self), 4), np.nan, dtype=np.float32)
        for mode in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
            rows = [row for row, item in enumerate(self._items) if _is_plain(item, mode)]
            try:
                with np.errstate(over="ignore"):
                    values = np.array([self._items[row]["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
            except (ValueError, TypeError, OverflowError):
                continue
            boxes[rows] = BoxMode.convert(values, mode, BoxMode.XYXY_ABS) if rows else values
        for row in np.flatnonzero(~np.isfinite(boxes).all(axis=1)):
            try:
                boxes[row] = read_box(self._items[row], self.name(row))
            except UserError as error:
                boxes[row] = np.nan
                self.unreadable.append((int(row), str(error)))
        return boxes

    def _read_classes(self) -> np.ndarray:
        classes = np.array([item.get("category_id") for item in self._items])
        if classes.dtype.kind in "iu" and classes.ndim == 1 and classes.min() >= 0:
            return classes.astype(np.int64)
        classes = np.full(len(self), -1, dtype=np.int64)
        for row, item in enumerate(self._items):
            try:
                classes[row] = read_category(item, self.name(row))
            except UserError as error:
                self.unreadable.append((row, str(error)))
        return classes


def _is_plain(item: dict, mode: BoxMode) -> bool:
    box = item.get("bbox")
    is_list = isinstance(box, Sequence | np.ndarray) and len(box) == 4 and not is_text(box)
    return is_list and item.get("bbox_mode") == mode


def _is_empty(segmentation: Any) -> bool:
    """Check for a mask without a polygon of three points or more, an RLE, or an array."""
    if not isinstance(segmentation, list | tuple):
        return segmentation is None
    return all(isinstance(x, Sequence) and (len(x) < 6 or len(x) % 2 == 1) for x in segmentation)


def _read_size(record: dict) -> tuple[float, float]:
    """Return height and width of a record, infinite if it has none. If they are not numbers, raise a UserError."""
    size = record.get("height") or np.inf, record.get("width") or np.inf
    if not all(isinstance(x, Real) for x in size):
        raise UserError(f"Image {record['file_name']} has height {size[0]!r} and width {size[1]!r}: write integers.")
    return size
