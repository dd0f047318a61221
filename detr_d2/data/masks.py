"""Masks of annotated objects, drawn in the augmented image."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import transforms as T

from detr_d2.data.annotations import count_dropped
from detr_d2.data.pixel_selection import PixelSelection, apply_to_mask, follow
from detr_d2.data.rle import to_rle
from detr_d2.utils.errors import ExampleCounter


class ObjectMasks(Protocol):
    """The masks of N objects of one image, not yet augmented."""

    def draw(self, objects: np.ndarray, transforms: T.TransformList) -> np.ndarray:
        """The masks of some objects in the augmented image.

        Args:
            objects: (M,) indices, M > 0.
            transforms: what has been done to the image.

        Returns:
            (M, H', W') bool.
        """
        ...


class RleMasks:
    """Masks that may overlap, kept as runs until it is known which are needed."""

    def __init__(self, rles: Sequence[dict], image_size: tuple[int, int]) -> None:
        self.rles = rles
        self.image_size = image_size

    def draw(self, objects: np.ndarray, transforms: T.TransformList) -> np.ndarray:
        rles = [self.rles[index] for index in objects]
        masks = coco_mask.decode(rles)
        selection = follow(transforms, self.image_size)
        if selection is None:
            drawn = np.stack(
                [apply_to_mask(transforms, np.ascontiguousarray(mask)) for mask in masks.transpose(2, 0, 1)]
            )
            return drawn.view(bool)
        drawn = np.zeros((len(rles), len(selection.rows), len(selection.columns)), dtype=np.uint8)
        for number, (left, top, width, height) in enumerate(coco_mask.toBbox(rles).astype(int)):
            # Most objects are small: nothing is done where they are not.
            rows = _between(selection.rows, top, top + height)
            columns = _between(selection.columns, left, left + width)
            part = np.ascontiguousarray(masks[top : top + height, left : left + width, number])
            selected = PixelSelection(selection.rows[rows], selection.columns[columns])
            drawn[number, rows, columns] = selected.take(part, corner=(top, left))
        return drawn.view(bool)


class MaskReader:
    """Reads the masks of annotations: polygons, RLE and bitmaps, as they come."""

    def __init__(self) -> None:
        self.dropped = ExampleCounter()

    def read(
        self, annotations: Sequence[dict], names: Sequence[str], image_size: tuple[int, int]
    ) -> tuple[np.ndarray, RleMasks]:
        """
        Args:
            annotations: dicts with "segmentation", see :func:`~detr_d2.data.rle.to_rle`.
            names: of the annotations, for messages.
            image_size: height and width in pixels.

        Returns:
            (N,) indices of the annotations that have a pixel in the image, and their masks; the others are counted.

        Raises:
            UserError: a segmentation that can't be read, or of another size than the image; the message names it.
        """
        pairs = list(zip(annotations, names, strict=True))
        rles = [to_rle(item.get("segmentation"), image_size, name, self.dropped) for item, name in pairs]
        has_pixel = np.array([rle is not None and coco_mask.area(rle) > 0 for rle in rles], dtype=bool)
        without_pixel = [names[index] for index in np.flatnonzero(~has_pixel)]
        count_dropped(self.dropped, "an object without mask, with its box", without_pixel)
        kept = np.flatnonzero(has_pixel)
        return kept, RleMasks([rles[index] for index in kept], image_size)


def _between(positions: np.ndarray, low: int, high: int) -> slice:
    """Where positions, which rise or fall, are in [low, high)."""
    found = np.flatnonzero((positions >= low) & (positions < high))
    return slice(found[0], found[-1] + 1) if len(found) else slice(0, 0)
