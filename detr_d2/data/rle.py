"""Conversion of an annotation's mask, in any of its formats, to COCO's RLE: runs of pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from detr_d2.data.annotations import count_dropped
from detr_d2.utils.errors import ExampleCounter, UserError

# Beyond this, in pixels, rasterizing a polygon could exhaust the memory; no image is as large.
_LARGEST_COORDINATE = 1e5
_FORMS = "a list of polygons [x1, y1, x2, y2, …], an RLE of 'counts' and 'size', or an array of the image's size"


def to_rle(segmentation: Any, image_size: tuple[int, int], name: str, dropped: ExampleCounter) -> dict | None:
    """Convert an annotation's "segmentation" to pycocotools' compressed RLE.

    Args:
        segmentation: polygons, whose union is the mask; an RLE, compressed or not; or an (H, W) array, not 0 in the
            object.
        image_size: height and width in pixels.
        name: name of the annotation in messages.
        dropped: counter of polygons with fewer than three points or an odd number of coordinates.

    Returns:
        The RLE; None if there is no polygon.

    Raises:
        UserError: its format is not one of these, or its size is not the image's.
    """
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        _check_size(segmentation.shape, image_size, name)
        return coco_mask.encode(np.asfortranarray(segmentation != 0, dtype=np.uint8))
    if isinstance(segmentation, dict):
        return _from_rle(segmentation, image_size, name)
    if segmentation is None or (isinstance(segmentation, Sequence | np.ndarray) and len(segmentation) == 0):
        return None
    polygons = _read_polygons(segmentation, name)
    valid = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    count_dropped(dropped, "a polygon of under three points", [name] * (len(polygons) - len(valid)))
    return coco_mask.merge(coco_mask.frPyObjects(valid, *image_size)) if valid else None


def _read_polygons(segmentation: Any, name: str) -> list[np.ndarray]:
    try:
        if isinstance(segmentation, str):
            raise TypeError
        polygons = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
        if any(polygon.ndim != 1 for polygon in polygons):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise UserError(f"The segmentation of {name} can't be read: it must be {_FORMS}.") from error
    # Not "any(... > limit)", which NaN would pass.
    if not all((np.abs(polygon) <= _LARGEST_COORDINATE).all() for polygon in polygons):
        raise UserError(
            f"A polygon of {name} has a coordinate that is not finite, or beyond {_LARGEST_COORDINATE:g} pixels: "
            "correct or remove it."
        )
    return polygons


def _from_rle(rle: dict, image_size: tuple[int, int], name: str) -> dict:
    try:
        counts = rle["counts"]
        is_compressed = isinstance(counts, str | bytes)
        size = tuple(int(x) for x in rle["size"])
        lengths = _decompress(counts) if is_compressed else np.array(counts, dtype=np.int64)
        if lengths.ndim != 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"The RLE of {name} can't be read: it must have 'size' [height, width] and 'counts'."
        ) from error
    _check_size(size, image_size, name)
    # pycocotools fills pixels that the runs leave out with uninitialized memory.
    if lengths.sum() != size[0] * size[1] or (lengths < 0).any():
        raise UserError(
            f"The runs in the RLE of {name} cover {lengths.sum()} pixels of {size[0] * size[1]}: its 'counts' are cut "
            "off or damaged; correct or remove it."
        )
    if is_compressed:
        return {"size": list(size), "counts": counts}
    return coco_mask.frPyObjects({"size": list(size), "counts": lengths.tolist()}, *size)


def _decompress(counts: str | bytes) -> np.ndarray:
    """Return the lengths of the runs in a compressed RLE.

    As ``rleFrString`` in COCO's maskApi.c: base 32 with a continuation bit, from the lowest digit; two's complement;
    from the fourth on, the difference from the run two before.
    """
    digits = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    digits = digits.astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)
    if ends.size == 0 or ends[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("not a compressed RLE")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 7:
        raise ValueError("a run of over 32 bits")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, sizes))
    lengths = np.add.reduceat((digits & 31) << shifts, starts)
    lengths -= np.where(digits[ends] & 16, 1 << (5 * sizes), 0)
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


def _check_size(size: tuple[int, ...], image_size: tuple[int, int], name: str) -> None:
    if size != tuple(image_size):
        raise UserError(
            f"The mask of {name} is {size[1]} x {size[0]} pixels (width x height), its image {image_size[1]} x "
            f"{image_size[0]}: give it the image's size."
        )
