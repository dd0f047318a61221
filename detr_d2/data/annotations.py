"""Boxes and classes for training from the annotation dicts of one image."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from detr_d2.utils.errors import ExampleCounter, UserError

logger = logging.getLogger(__name__)


class ImageTargets(NamedTuple):
    """Usable annotations of one image, in its own coordinates."""

    boxes: np.ndarray  # (N, 4) float32, absolute XYXY, inside the image, width and height over 0.
    classes: np.ndarray  # (N,) int64.
    annotations: list[dict]  # The N annotation dicts these come from, unchanged; masks are read from here.
    names: list[str]  # Display names, used in messages.

    def select(self, objects: np.ndarray) -> "ImageTargets":
        """Return the targets with the given indices."""
        lists = [[items[index] for index in objects] for items in (self.annotations, self.names)]
        return ImageTargets(self.boxes[objects], self.classes[objects], *lists)


def count_dropped(dropped: ExampleCounter, kind: str, names: Sequence[str]) -> None:
    """Count objects that are left out of the data for one reason, and log the first of them.

    Of a loader's workers the first one logs. The total of a dataset is what its check reports before training.
    """
    worker = get_worker_info()
    if names and dropped.add(kind, names[0], len(names)) and (worker is None or worker.id == 0):
        logger.warning("Dropped %s: %s. Others are dropped too.", kind, names[0])


def is_crowd(annotation: dict) -> bool:
    """Check whether an annotation outlines a group instead of an object. A missing "iscrowd" means no."""
    return bool(annotation.get("iscrowd", 0))


def is_panoptic(record: dict) -> bool:
    """Check whether the objects of a record are the segments of its panoptic map, since it has no annotations."""
    return not record.get("annotations") and "pan_seg_file_name" in record and "segments_info" in record


def annotations_of(record: dict) -> list[dict]:
    """Return the annotations of a record; of a panoptic one its segments, with the boxes in the JSON file.

    A segment without one gets the box of the whole image: training computes the actual one from the PNG.
    """
    if not is_panoptic(record):
        return record.get("annotations") or []
    whole = {"bbox": [0, 0, record["width"], record["height"]]} if "width" in record and "height" in record else {}
    return [{**whole, **segment, "bbox_mode": BoxMode.XYWH_ABS} for segment in record["segments_info"]]


def name_segment(segment: dict, record: dict) -> str:
    """Return the display name of a segment of a panoptic record, used in messages."""
    return f"segment id {segment.get('id')} of {record['pan_seg_file_name']}"


def name_annotation(annotation: dict, index: int, file_name: str) -> str:
    """Return the display name of an annotation, used in messages: its id, or its position if ids were not loaded."""
    if "id" in annotation:
        return f"annotation id {annotation['id']} of image {file_name}"
    return f"annotation number {index} (counted from 0) of image {file_name}"


def read_targets(
    annotations: Sequence[dict], file_name: str, image_size: tuple[int, int], dropped: ExampleCounter
) -> ImageTargets:
    """Read the annotations of one image, without changing them.

    Crowds are left out. Boxes are clipped to the image, and left out if nothing remains.

    Args:
        annotations: dicts with "bbox", "bbox_mode" and "category_id".
        file_name: name of the image in messages.
        image_size: height and width in pixels.
        dropped: counter of the boxes that are left out.

    Raises:
        UserError: a box or a category is missing, malformed or not finite.
    """
    items = [item for item in annotations if not is_crowd(item)]
    names = [name_annotation(item, i, file_name) for i, item in enumerate(annotations) if not is_crowd(item)]
    boxes = [read_box(item, name) for item, name in zip(items, names, strict=True)]
    classes = [read_category(item, name) for item, name in zip(items, names, strict=True)]
    boxes = clip_boxes(np.array(boxes, dtype=np.float32).reshape(-1, 4), image_size)
    classes = np.array(classes, dtype=np.int64)
    keep = has_area(boxes)
    count_dropped(dropped, "a box without area inside its image", [names[i] for i in np.flatnonzero(~keep)])
    return ImageTargets(boxes, classes, items, names).select(np.flatnonzero(keep))


def read_box(annotation: dict, name: str) -> np.ndarray:
    """Read the box of an annotation, as (4,) float32, absolute XYXY. If it can't be read, raise a UserError."""
    try:
        if is_text(annotation["bbox"]):
            raise ValueError("it holds text")
        with np.errstate(over="ignore"):
            box = np.array(annotation["bbox"], dtype=np.float32)[None]
        xyxy = BoxMode.convert(box, BoxMode(annotation["bbox_mode"]), BoxMode.XYXY_ABS)[0]
        if xyxy.shape != (4,):
            raise ValueError(f"it holds {xyxy.size} numbers")
    except KeyError as error:
        raise UserError(f"No {error} in {name}: add it.") from error
    except (ValueError, TypeError, AssertionError, IndexError, NotImplementedError, OverflowError) as error:
        raise UserError(
            f"bbox {annotation['bbox']} with bbox_mode {annotation['bbox_mode']} of {name} can't be read "
            f"({error}): it must be four numbers in a BoxMode that converts to XYXY_ABS."
        ) from error
    if not np.isfinite(xyxy).all():
        raise UserError(f"bbox {annotation['bbox']} of {name} is not finite: correct or remove it.")
    return xyxy


def is_text(numbers: object) -> bool:
    """Check whether a value or a list has text, which NumPy would silently convert to numbers."""
    return isinstance(numbers, str) or (isinstance(numbers, Sequence) and any(isinstance(x, str) for x in numbers))


def read_category(annotation: dict, name: str) -> int:
    """Read the category of an annotation: ``"3"`` and ``3.0`` count as 3. If it can't be read, raise a UserError."""
    value = annotation.get("category_id")
    try:
        category = int(value)
        if category < 0 or category != float(value):
            raise ValueError
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"category_id {value!r} of {name} is not a non-negative integer: correct it.") from error
    return category


def clip_boxes(boxes: np.ndarray, image_size: tuple[int, int] | np.ndarray) -> np.ndarray:
    """Clip (N, 4) XYXY boxes to an image of the given height and width, or each to its own of (2, N) sizes."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype).T)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Return (N,) bool, True for (N, 4) XYXY boxes with a width and a height over 0."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def build_instances(
    boxes: np.ndarray,
    classes: np.ndarray,
    image_size: tuple[int, int],
    rasterize_masks: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Instances:
    """Build the training targets of one augmented image.

    Boxes are clipped to the image; an object is removed if nothing is left of its box, or of its mask.

    Args:
        boxes: (N, 4) absolute XYXY boxes in the augmented image, with (N,) int classes.
        image_size: height and width of the augmented image.
        rasterize_masks: function that returns (M, H, W) bool masks in the augmented image for (M,) indices, M > 0.

    Returns:
        ``gt_boxes``: (K, 4) float32 ``Boxes``; ``gt_classes``: (K,) int64; with ``rasterize_masks`` also ``gt_masks``:
        (K, H, W) ``BitMasks``.
    """
    boxes = clip_boxes(np.asarray(boxes, dtype=np.float32).reshape(-1, 4), image_size)
    kept = np.flatnonzero(has_area(boxes))
    instances = Instances(image_size)
    if rasterize_masks is not None:
        masks = rasterize_masks(kept) if len(kept) else np.zeros((0, *image_size), dtype=bool)
        visible = masks.any(axis=(1, 2))
        masks, kept = masks if visible.all() else masks[visible], kept[visible]
        instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes[kept]))
    instances.gt_classes = torch.from_numpy(classes[kept].astype(np.int64))
    return instances


def scaled_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Return the objects in their image scaled to ``size``, (height, width); fields other than boxes and masks stay."""
    (old_height, old_width), (height, width) = instances.image_size, size
    boxes = instances.gt_boxes.tensor
    scaled = Instances(size, **instances.get_fields())
    scaled.gt_boxes = Boxes(boxes * boxes.new_tensor([width / old_width, height / old_height] * 2))
    if instances.has("gt_masks"):
        masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)
        if tuple(masks.shape[1:]) != tuple(size):
            masks = F.interpolate(masks[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0] > 0.5
        scaled.gt_masks = BitMasks(masks)
    return scaled
