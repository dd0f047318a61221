"""All annotations of a dataset as columns, so that a million of them are checked in seconds."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import BoxMode

from detr_d2.data.annotations import (
    annotations_of,
    has_area,
    is_crowd,
    is_panoptic,
    name_annotation,
    name_segment,
    read_box,
    read_category,
)
from detr_d2.utils.errors import UserError

_COMMON_MODES = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


class AnnotationTable:
    """The annotations of a dataset that are no crowds, one a row; of panoptic records their segments.

    Attributes:
        boxes: (N, 4) float32, absolute XYXY, as annotated; NaN where unreadable.
        classes: (N,) int64; -1 where unreadable.
        image_index: (N,) int64, which record the annotation belongs to.
        image_sizes: (N, 2) float32, height and width; infinite where the dataset doesn't say.
        declared_xywh: (N,) bool, whether "bbox_mode" is XYWH_ABS.
        of_segments: (N,) bool, whether the object is a segment of a panoptic map.
        num_crowds: how many annotations were left out as crowds.
        unreadable: (row, message) of every box or category that is missing, malformed or not finite.
    """

    def __init__(self, records: Sequence[dict]) -> None:
        self._records = records
        lists = self._lists = [annotations_of(record) for record in records]
        objects = [[item for item in items if not is_crowd(item)] for items in lists]
        self._items = [item for items in objects for item in items]
        self.image_index = np.repeat(np.arange(len(records)), [len(items) for items in objects])
        self.num_images = len(records)
        self.num_crowds = sum(map(len, lists)) - len(self._items)
        self.unreadable: list[tuple[int, str]] = []

        sizes = np.array([_image_size(record) for record in records], dtype=np.float32).reshape(-1, 2)
        self.image_sizes = sizes[self.image_index]
        self.declared_xywh = np.array([item.get("bbox_mode") == BoxMode.XYWH_ABS for item in self._items], bool)
        self.of_segments = np.array([is_panoptic(record) for record in records], bool)[self.image_index]
        self.boxes = self._read_boxes()
        self.classes = self._read_classes()

    def __len__(self) -> int:
        return len(self._items)

    def name(self, row: int) -> str:
        """What to call the annotation of a row in a message."""
        item, image = self._items[row], self.image_index[row]
        record = self._records[image]
        if self.of_segments[row]:
            return name_segment(item, record)
        position = next(index for index, other in enumerate(self._lists[image]) if other is item)
        return name_annotation(item, position, record["file_name"])

    def image_name(self, index: int) -> str:
        return self._records[index]["file_name"]

    def category(self, row: int) -> object:
        """The category of a row, as annotated."""
        return self._items[row]["category_id"]

    def lacks_mask(self, row: int) -> bool:
        """Whether there is nothing to draw the object of a row from."""
        segmentation = self._items[row].get("segmentation")
        missing = segmentation is None or (isinstance(segmentation, Sequence) and len(segmentation) == 0)
        return missing and not self.of_segments[row]

    def is_readable(self) -> np.ndarray:
        """(N,) bool: whether all four numbers of the box are known."""
        return np.isfinite(self.boxes).all(axis=1)

    def clipped(self) -> np.ndarray:
        """(N, 4) boxes, what lies inside their images."""
        height, width = self.image_sizes[:, 0], self.image_sizes[:, 1]
        return np.clip(self.boxes, 0, np.stack([width, height, width, height], axis=1))

    def without_area(self) -> np.ndarray:
        """Rows whose box has no area inside its image."""
        return np.flatnonzero(self.is_readable() & ~has_area(self.clipped()))

    def beyond_image(self) -> np.ndarray:
        """Rows whose box ends over a pixel to the right of or below its image."""
        return np.flatnonzero((self.boxes[:, 2:] > self.image_sizes[:, ::-1] + 1).any(axis=1))

    def partly_outside(self) -> np.ndarray:
        """Rows whose box has area inside its image, and over a pixel of a side outside."""
        outside = (np.abs(self.boxes - self.clipped()) > 1).any(axis=1)
        return np.flatnonzero(outside & has_area(self.clipped()))

    def _read_boxes(self) -> np.ndarray:
        """All well-formed boxes of a mode at once; the others one by one, for the message."""
        boxes = np.full((len(self), 4), np.nan, dtype=np.float32)
        left = np.ones(len(self), dtype=bool)
        for mode in _COMMON_MODES:
            rows = [row for row, item in enumerate(self._items) if _is_plain(item, mode)]
            try:
                with np.errstate(over="ignore"):
                    values = np.array([self._items[row]["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
            except (ValueError, TypeError):
                continue
            boxes[rows] = BoxMode.convert(values, mode, BoxMode.XYXY_ABS) if rows else values
            left[rows] = ~np.isfinite(boxes[rows]).all(axis=1)
        for row in np.flatnonzero(left):
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
    return item.get("bbox_mode") == mode and isinstance(box, Sequence | np.ndarray) and len(box) == 4


def _image_size(record: dict) -> tuple[float, float]:
    return float(record.get("height") or np.inf), float(record.get("width") or np.inf)
