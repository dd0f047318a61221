"""Masks of annotated objects, rasterized in the augmented image."""

from collections.abc import Iterable, Sequence

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, VFlipTransform
from torch.nn.functional import interpolate

from detr_d2.data.annotations import count_dropped
from detr_d2.data.augmentation import FastResizeTransform
from detr_d2.data.rle import to_rle
from detr_d2.utils.errors import ExampleCounter


class RleMasks:
    """Masks that may overlap, stored as runs until it is known which objects the augmented image shows."""

    def __init__(self, rles: Sequence[dict], image_size: tuple[int, int]) -> None:
        self.rles = rles
        self.image_size = image_size

    def rasterize(self, objects: np.ndarray, transforms: T.TransformList) -> np.ndarray:
        """Return the (M, H', W') bool masks, in the image after ``transforms``, of (M,) indices of objects, M > 0."""
        rles = [self.rles[index] for index in objects]
        masks = coco_mask.decode(rles)
        selection = select_pixels(transforms, self.image_size)
        if selection is None:
            return augment_masks(transforms, masks.transpose(2, 0, 1))
        rows, columns = selection
        rasterized = np.zeros((len(rles), len(rows), len(columns)), dtype=np.uint8)
        for number, (left, top, width, height) in enumerate(coco_mask.toBbox(rles).astype(int)):
            # Most objects are small: only their boxes are copied.
            y, x = _between(rows, top, top + height), _between(columns, left, left + width)
            crop = np.ascontiguousarray(masks[top : top + height, left : left + width, number])
            rasterized[number, y, x] = crop.take(rows[y] - top, axis=0).take(columns[x] - left, axis=1)
        return rasterized.view(bool)


def read_masks(
    annotations: Sequence[dict], names: Sequence[str], image_size: tuple[int, int], dropped: ExampleCounter
) -> tuple[np.ndarray, RleMasks]:
    """Read masks: polygons, RLE and bitmaps, in any mixture.

    Args:
        annotations: dicts with "segmentation", see :func:`~detr_d2.data.rle.to_rle`.
        names: names of the annotations in messages.
        image_size: height and width in pixels.
        dropped: counter of annotations without a pixel in the image, and of polygons that are not valid.

    Returns:
        (N,) indices of the annotations with a pixel in the image, and their masks.

    Raises:
        UserError: a segmentation can't be read, or has another size than the image; the message names it.
    """
    pairs = zip(annotations, names, strict=True)
    rles = [to_rle(item.get("segmentation"), image_size, name, dropped) for item, name in pairs]
    has_pixel = np.array([rle is not None and coco_mask.area(rle) > 0 for rle in rles], dtype=bool)
    without_pixel = [names[index] for index in np.flatnonzero(~has_pixel)]
    count_dropped(dropped, "an object without mask, with its box", without_pixel)
    kept = np.flatnonzero(has_pixel)
    return kept, RleMasks([rles[index] for index in kept], image_size)


def select_pixels(transforms: T.TransformList, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows and the columns of a mask that form the augmented mask, in its order: (H',) and (W',) int64.

    Flips, crops and resizes only select rows and columns; None if one of the transforms is of another kind. A resize
    selects the nearest pixel as ``torch.nn.functional.interpolate`` finds it, like the original. ``image_size`` is
    height and width before the transforms.
    """
    rows, columns = np.arange(image_size[0]), np.arange(image_size[1])
    for transform in transforms.transforms:
        kind = type(transform)
        if kind is HFlipTransform:
            columns = columns[::-1]
        elif kind is VFlipTransform:
            rows = rows[::-1]
        elif kind is CropTransform:
            rows = rows[transform.y0 : transform.y0 + transform.h]
            columns = columns[transform.x0 : transform.x0 + transform.w]
        elif kind in (T.ResizeTransform, FastResizeTransform):
            rows, columns = _nearest(rows, transform.new_h), _nearest(columns, transform.new_w)
        elif kind is not NoOpTransform:
            return None
    return rows, columns


def augment_masks(transforms: T.TransformList, masks: Iterable[np.ndarray]) -> np.ndarray:
    """Apply transforms of any kind to (H, W) masks of 0 and 1, giving (N, H', W') bool."""
    # A transform may pad masks with another value, by which Detectron2 marks pixels to ignore.
    masks = (np.ascontiguousarray(mask, dtype=np.uint8) for mask in masks)
    return np.stack([transforms.apply_segmentation(mask) == 1 for mask in masks])


def _between(positions: np.ndarray, low: int, high: int) -> slice:
    """Return the slice in which positions, in ascending or descending order, are in [low, high)."""
    inside = np.flatnonzero((positions >= low) & (positions < high))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)


def _nearest(positions: np.ndarray, size: int) -> np.ndarray:
    index = torch.arange(len(positions), dtype=torch.float32)[None, None]
    return positions[interpolate(index, size=size, mode="nearest")[0, 0].long().numpy()]
