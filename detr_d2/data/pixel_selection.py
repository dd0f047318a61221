"""Moving masks along with an image: which pixel of the mask each pixel of the augmented image shows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, VFlipTransform
from torch.nn.functional import interpolate

from detr_d2.data.augmentation import FastResizeTransform


class PixelSelection(NamedTuple):
    """The rows and the columns of an image that remain, in their order: flips, crops and resizes are no more."""

    rows: np.ndarray
    """(H',) int64."""
    columns: np.ndarray
    """(W',) int64."""

    def take(self, mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
        """What is selected of an (H, W) mask.

        ``mask`` may be a cut-out of the whole with its upper left pixel in row and column ``corner``, if all that is
        selected lies in it.
        """
        return mask.take(self.rows - corner[0], axis=0).take(self.columns - corner[1], axis=1)


def follow(transforms: T.TransformList, image_size: tuple[int, int]) -> PixelSelection | None:
    """The selection that augmenting an image of the given height and width comes to.

    Resizing takes the nearest pixel as ``torch.nn.functional.interpolate`` finds it, which is what the original does.

    Returns:
        None if there is a transform among them that is no selection of rows and columns.
    """
    selection = PixelSelection(np.arange(image_size[0]), np.arange(image_size[1]))
    for transform in transforms.transforms:
        step = _STEPS.get(type(transform))
        if step is None:
            return None
        selection = step(transform, selection)
    return selection


def apply_to_mask(transforms: T.TransformList, mask: np.ndarray) -> np.ndarray:
    """Whatever the transforms are: (H, W) uint8 with 0 and 1 -> (H', W') of the same."""
    # What a transform adds at the sides has another value, by which Detectron2 means to ignore it.
    return (transforms.apply_segmentation(mask) == 1).astype(np.uint8)


def _resize(transform: T.ResizeTransform, x: PixelSelection) -> PixelSelection:
    return PixelSelection(_nearest(x.rows, transform.new_h), _nearest(x.columns, transform.new_w))


def _nearest(positions: np.ndarray, size: int) -> np.ndarray:
    index = torch.arange(len(positions), dtype=torch.float32)[None, None]
    return positions[interpolate(index, size=size, mode="nearest")[0, 0].long().numpy()]


def _crop(transform: CropTransform, x: PixelSelection) -> PixelSelection:
    rows = x.rows[transform.y0 : transform.y0 + transform.h]
    return PixelSelection(rows, x.columns[transform.x0 : transform.x0 + transform.w])


_STEPS: dict[type[Transform], Callable[..., PixelSelection]] = {
    NoOpTransform: lambda transform, x: x,
    HFlipTransform: lambda transform, x: PixelSelection(x.rows, x.columns[::-1]),
    VFlipTransform: lambda transform, x: PixelSelection(x.rows[::-1], x.columns),
    CropTransform: _crop,
    T.ResizeTransform: _resize,
    FastResizeTransform: _resize,
}
