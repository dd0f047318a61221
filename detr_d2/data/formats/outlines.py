"""Geometry of annotated objects in their image: clipping, boxes and areas."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from detr_d2.data.formats.records import AnnotatedObject
from detr_d2.data.rle import to_rle
from detr_d2.utils.errors import ExampleCounter

# Mouse positions are rounded: outlines may exceed the image by this many pixels without a note.
_TOLERANCE = 1.0
_DECIMALS = 2


def describe(
    item: AnnotatedObject, image_size: tuple[int, int], scale: tuple[float, float], notes: ExampleCounter
) -> dict[str, Any] | None:
    """Return "bbox", "area", and "segmentation" if there is one, in COCO's format; None without area in the image.

    Args:
        image_size: height and width in pixels.
        scale: factors of x and y that make the coordinates pixels.
        notes: counts objects that are dropped, or reach far beyond the image.
    """
    limits = np.array(image_size)[::-1]
    outlines, masks = _read_masks(item, image_size, scale, notes)
    if item.box is not None:
        outlines = [np.multiply(np.reshape(item.box, (2, 2)), scale)]
        low, high = np.clip(outlines[0], 0, limits).round(_DECIMALS)
    else:
        inside = [np.reshape(polygon, (-1, 2)) for polygon in masks.get("segmentation", [np.zeros((1, 2))])]
        low, high = np.concatenate(inside).min(axis=0), np.concatenate(inside).max(axis=0)
    sides = (high - low).round(_DECIMALS)
    if not (sides > 0).all():
        notes.add("objects have no area inside their image and were dropped.", item.name)
        return None
    points = np.concatenate(outlines)
    if (points < -_TOLERANCE).any() or (points > limits + _TOLERANCE).any():
        notes.add("objects extend beyond their image and were clipped.", item.name)
    return {"bbox": [*low.tolist(), *sides.tolist()], "area": round(float(sides.prod()), _DECIMALS)} | masks


def _read_masks(
    item: AnnotatedObject, image_size: tuple[int, int], scale: tuple[float, float], notes: ExampleCounter
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return the polygons of an object in pixels, and "segmentation" and "area" in the image; {} if that has none."""
    if isinstance(item.segmentation, dict):
        rle = to_rle(item.segmentation, image_size, item.name, notes)
        return [], {"segmentation": item.segmentation, "area": float(coco_mask.area(rle))}
    outlines = [np.multiply(np.reshape(polygon, (-1, 2)), scale) for polygon in item.segmentation]
    return outlines, _describe_polygons(outlines, image_size)


def _describe_polygons(outlines: Sequence[np.ndarray], image_size: tuple[int, int]) -> dict[str, Any]:
    """Return "segmentation" and "area" of the polygons' parts inside the image; {} if these have no area."""
    inside = [clip(outline, image_size).round(_DECIMALS) for outline in outlines]
    areas = [_area(polygon) for polygon in inside]
    polygons = [polygon.reshape(-1).tolist() for polygon, area in zip(inside, areas, strict=True) if area > 0]
    return {"segmentation": polygons, "area": round(sum(areas), _DECIMALS)} if polygons else {}


def _area(polygon: np.ndarray) -> float:
    """Return the area by the shoelace formula, from the first point: that of a point or a line is exactly 0."""
    x, y = (polygon - polygon[:1]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def clip(polygon: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Clip a polygon of (N, 2) x and y to an image of the given height and width; (0, 2) if it lies outside.

    Sutherland and Hodgman, Reentrant polygon clipping, CACM 1974: one side of the image after the other. Pieces that
    the image cuts a polygon into stay joined along the border.
    """
    height, width = image_size
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = sign * (polygon[:, axis] - limit)
        kept = []
        for i, point in enumerate(polygon):
            if (depth[i - 1] >= 0) != (depth[i] >= 0):
                share = depth[i - 1] / (depth[i - 1] - depth[i])
                crossing = polygon[i - 1] + share * (point - polygon[i - 1])
                crossing[axis] = limit
                kept.append(crossing)
            if depth[i] >= 0:
                kept.append(point)
        polygon = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return polygon
