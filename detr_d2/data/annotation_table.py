"""All annotations of a dataset as columns, so that a million of them are checked in seconds."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import BoxMode

from detr_d2.data.annotations import (
    has_area,
    is_crowd,
    name_annotation,
    read_box,
    read_category,
)


class AnnotationTable:
    """The annotations of a dataset that are no crowds, one a row.

    Attributes:
        boxes: (N, 4) float32, absolute XYXY, as annotated.
        classes: (N,) int64.
        image_sizes: (N, 2) float32, height and width; infinite where the dataset doesn't say.
        declared_xywh: (N,) bool, whether "bbox_mode" is XYWH_ABS.
        num_crowds: how many annotations were left out as crowds.

    Raises:
        UserError: a box or a category that is missing, malformed or not finite.
    """

    def __init__(self, records: Sequence[dict]) -> None:
        self._records = records
        lists = [record.get("annotations") or () for record in records]
        objects = [[item for item in items if not is_crowd(item)] for items in lists]
        self._items = [item for items in objects for item in items]
        self._record_of = np.repeat(np.arange(len(records)), [len(items) for items in objects])
        self.num_crowds = sum(map(len, lists)) - len(self._items)

        sizes = np.array([_image_size(record) for record in records], dtype=np.float32).reshape(-1, 2)
        self.image_sizes = sizes[self._record_of]
        self.declared_xywh = np.array([item.get("bbox_mode") == BoxMode.XYWH_ABS for item in self._items], bool)
        self.boxes = self._read_boxes()
        self.classes = self._read_classes()

    def __len__(self) -> int:
        return len(self._items)

    def name(self, row: int) -> str:
        """What to call the annotation of a row in a message."""
        item, record = self._items[row], self._records[self._record_of[row]]
        position = next(index for index, other in enumerate(record["annotations"]) if other is item)
        return name_annotation(item, position, record["file_name"])

    def category(self, row: int) -> object:
        """The category of a row, as annotated."""
        return self._items[row]["category_id"]

    def without_area(self) -> np.ndarray:
        """Rows whose box has no area inside its image."""
        height, width = self.image_sizes[:, 0], self.image_sizes[:, 1]
        clipped = np.clip(self.boxes, 0, np.stack([width, height, width, height], axis=1))
        return np.flatnonzero(~has_area(clipped))

    def beyond_image(self) -> np.ndarray:
        """Rows whose box ends over a pixel to the right of or below its image."""
        return np.flatnonzero((self.boxes[:, 2:] > self.image_sizes[:, ::-1] + 1).any(axis=1))

    def _read_boxes(self) -> np.ndarray:
        """All boxes at once if they are well-formed and of one mode, else one by one for the message."""
        modes = {item.get("bbox_mode") for item in self._items}
        if len(modes) == 1 and modes <= {BoxMode.XYWH_ABS, BoxMode.XYXY_ABS}:
            try:
                boxes = np.array([item["bbox"] for item in self._items], dtype=np.float32)
            except (KeyError, ValueError, TypeError):
                boxes = np.empty(0, dtype=np.float32)
            if boxes.shape == (len(self), 4) and np.isfinite(boxes).all():
                return BoxMode.convert(boxes, BoxMode(modes.pop()), BoxMode.XYXY_ABS)
        boxes = [read_box(item, self.name(row)) for row, item in enumerate(self._items)]
        return np.array(boxes, dtype=np.float32).reshape(-1, 4)

    def _read_classes(self) -> np.ndarray:
        classes = np.array([item.get("category_id") for item in self._items])
        if classes.dtype.kind in "iu" and classes.min() >= 0:
            return classes.astype(np.int64)
        classes = [read_category(item, self.name(row)) for row, item in enumerate(self._items)]
        return np.array(classes, dtype=np.int64)


def _image_size(record: dict) -> tuple[float, float]:
    return float(record.get("height") or np.inf), float(record.get("width") or np.inf)
