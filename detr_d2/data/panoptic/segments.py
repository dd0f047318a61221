"""Objects of a panoptic image: things and stuff, from a PNG of segment ids and its list of segments."""

import os
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from PIL import Image
from scipy import ndimage

from detr_d2.data.annotations import ImageTargets, is_crowd, name_segment, read_category
from detr_d2.data.images import explain_errors, open_image
from detr_d2.data.masks import augment_masks, select_pixels
from detr_d2.utils.errors import UserError, abbreviate
from detr_d2.utils.files import atomic_file

# Id of pixels that belong to no segment.
VOID = 0
_PNG_SIGNATURE, _BIT_DEPTH_OFFSET = b"\x89PNG\r\n\x1a\n", 24
_FORMAT = "COCO's format requires an RGB PNG of 8 bits, in which a segment's id is R + 256 G + 65536 B"


class SegmentMasks:
    """Masks that do not overlap, stored as one map."""

    def __init__(self, numbers: np.ndarray, objects: np.ndarray) -> None:
        """Store the number of each pixel's segment, (H, W), and the numbers of the segments that are objects, (N,)."""
        self.numbers = numbers
        self.objects = objects

    def rasterize(self, objects: np.ndarray, transforms: T.TransformList) -> np.ndarray:
        """Return the masks of some objects in the augmented image, as :class:`~detr_d2.data.masks.RleMasks` does."""
        numbers = self.objects[objects][:, None, None]
        selection = select_pixels(transforms, self.numbers.shape)
        if selection is None:
            return augment_masks(transforms, self.numbers == numbers)
        rows, columns = selection
        return self.numbers.take(rows, axis=0).take(columns, axis=1) == numbers


def read_segments(record: dict, image_size: tuple[int, int]) -> tuple[ImageTargets, SegmentMasks]:
    """Read the things and stuff of a panoptic record; crowds are left out.

    Boxes enclose the pixels of the segments in the PNG, as COCO's boxes of things do.

    Args:
        record: dict with "pan_seg_file_name" and "segments_info", whose "category_id" is the row of the class head.
        image_size: height and width of the image in pixels.

    Raises:
        UserError: the PNG is missing, can't be read, is not of COCO's format or of the image's size, or has other
            segments than "segments_info"; the message names the file.
    """
    path, segments = record["pan_seg_file_name"], record["segments_info"]
    names = [name_segment(segment, record) for segment in segments]
    numbers, boxes = _number_segments(read_segment_map(path, image_size), segments, path)
    kept = [index for index, segment in enumerate(segments) if not is_crowd(segment)]
    targets = ImageTargets(
        np.array([boxes[index] for index in kept], dtype=np.float32).reshape(-1, 4),
        np.array([read_category(segments[index], names[index]) for index in kept], dtype=np.int64),
        [segments[index] for index in kept],
        [names[index] for index in kept],
    )
    return targets, SegmentMasks(numbers, np.array(kept, dtype=np.int32) + 1)


def read_segment_map(path: str, image_size: tuple[int, int]) -> np.ndarray:
    """Return the id of each pixel's segment in a panoptic PNG, (H, W) int32, ``VOID`` for pixels of no segment.

    Errors are those of :func:`read_segments`.
    """
    with explain_errors(f"Panoptic map {path}", "the folder of the dataset's PNGs"):
        data, image = open_image(path)
        image.load()
    # Pillow opens 16 bits of RGB as 8 without an error.
    bits = data[_BIT_DEPTH_OFFSET] if data.startswith(_PNG_SIGNATURE) else None
    if bits != 8 or image.mode != "RGB":
        kind = f"a {image.format} of mode {image.mode}" if bits is None else f"a PNG of mode {image.mode}, {bits} bits"
        raise UserError(f"Panoptic map {path} is {kind}: {_FORMAT}.")
    if (image.height, image.width) != tuple(image_size):
        raise UserError(
            f"Panoptic map {path} is {image.width} x {image.height} pixels (width x height), its image {image_size[1]} "
            f"x {image_size[0]} (EXIF rotation applied): replace one of them."
        )
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def write_segment_map(path: str, ids: np.ndarray) -> None:
    """Write (H, W) segment ids under 2^24 as a panoptic PNG; folders are created if needed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic_file(path) as file:
        Image.fromarray(segment_ids_to_rgb(ids)).save(file, format="PNG")


def segment_ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Return (H, W) segment ids under 2^24 as (H, W, 3) uint8 colors: id = R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def _number_segments(ids: np.ndarray, segments: Sequence[dict], path: str) -> tuple[np.ndarray, list[tuple]]:
    """Return each pixel's segment, (H, W) counted from 1, 0 for none; and each segment's (x0, y0, x1, y1)."""
    flat = ids.ravel()
    # Maps consist of long runs: to visit each run is faster than to visit each pixel.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    present, inverse = np.unique(flat[starts], return_inverse=True)
    number_by_id = {segment.get("id"): number for number, segment in enumerate(segments, start=1)}
    if len(number_by_id) < len(segments):
        raise UserError(f"The segments of {path} share ids: give each in 'segments_info' its own.")
    unknown = [i for i in present.tolist() if i != VOID and i not in number_by_id]
    if unknown:
        raise UserError(
            f"Panoptic map {path} has segments that its JSON does not list, of ids {abbreviate(unknown)}: add them to "
            f"'segments_info', or give pixels of no segment the id {VOID}."
        )
    missing = sorted(set(number_by_id) - set(present.tolist()), key=str)
    if missing or VOID in number_by_id:
        missing = missing or [VOID]
        raise UserError(
            f"Panoptic map {path} has no pixel of the segments {abbreviate(missing)} in its JSON: remove them from "
            "'segments_info', or replace the PNG."
        )
    by_present = np.array([number_by_id.get(i, 0) for i in present.tolist()], dtype=np.int32)
    numbers = np.repeat(by_present[inverse], np.diff(starts, append=flat.size)).reshape(ids.shape)
    slices = ndimage.find_objects(numbers, max_label=len(segments))
    return numbers, [(x.start, y.start, x.stop, y.stop) for y, x in slices]
