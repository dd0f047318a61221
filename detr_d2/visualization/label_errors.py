"""Crops of images that show an annotation and what is predicted in its place."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ANNOTATED, PREDICTED, OTHERS = "#e69f00", "#0072b2", "#ffffff"
"""Colors of the annotation, of the prediction and of the other annotations."""

# Side of the crop relative to that of what it shows, and its minimum in pixels of the image.
_CONTEXT, _MIN_SIDE = 2.2, 64
# Pixels of the result's longer side, and of the gaps of a dashed line.
_SIDE, _DASH = 240, 6

Box = Sequence[float]


def draw_label_error(
    image_rgb: NDArray[np.uint8], annotated: Box | None, predicted: Box | None, others: Sequence[Box] = ()
) -> Image.Image:
    """Draw the surroundings of an annotated and a predicted box, of which one may be missing.

    The annotation is a solid line, the prediction a dashed one, and other annotations are thin lines. Boxes are x, y,
    width and height in pixels of the (H, W, 3) image.
    """
    shown = [x for x in (annotated, predicted) if x is not None]
    low = np.min([x[:2] for x in shown], axis=0)
    high = np.max([np.add(x[:2], x[2:]) for x in shown], axis=0)
    side = max(_MIN_SIDE, _CONTEXT * float((high - low).max()))
    size = np.array(image_rgb.shape[1::-1])
    start = ((low + high - side) / 2).clip(0, size - 1).astype(int)
    stop = np.ceil((low + high + side) / 2).clip(start + 1, size).astype(int)
    crop = Image.fromarray(image_rgb[start[1] : stop[1], start[0] : stop[0]])
    scale = _SIDE / max(crop.size)
    crop = crop.resize([max(1, round(scale * x)) for x in crop.size], Image.Resampling.BILINEAR)
    drawing = ImageDraw.Draw(crop)

    def corners(box: Box) -> list[float]:
        return (scale * np.subtract([*box[:2], *np.add(box[:2], box[2:])], [*start, *start])).tolist()

    for box in others:
        drawing.rectangle(corners(box), outline=OTHERS, width=1)
    if annotated is not None:
        drawing.rectangle(corners(annotated), outline=ANNOTATED, width=3)
    if predicted is not None:
        _draw_dashed(drawing, corners(predicted))
    return crop


def _draw_dashed(drawing: ImageDraw.ImageDraw, corners: Box) -> None:
    left, top, right, bottom = corners
    for x in np.arange(left, right, 2 * _DASH):
        end = min(x + _DASH, right)
        drawing.line([(x, top), (end, top)], fill=PREDICTED, width=3)
        drawing.line([(x, bottom), (end, bottom)], fill=PREDICTED, width=3)
    for y in np.arange(top, bottom, 2 * _DASH):
        end = min(y + _DASH, bottom)
        drawing.line([(left, y), (left, end)], fill=PREDICTED, width=3)
        drawing.line([(right, y), (right, end)], fill=PREDICTED, width=3)
