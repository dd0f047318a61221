"""Detections, ground truth and panoptic segments, drawn on a copy of an image."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from torch import Tensor

from detr_d2.visualization.style import palette_color

# Brightness of a class's color for its things, one after the other; Detectron2 chooses randomly.
_SHADES = (1.0, 0.7, 1.25, 0.55, 0.85, 1.1)


def draw_instances(
    image_rgb: NDArray[np.uint8],
    instances: Instances | Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    score_thresh: float = 0.5,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw detections or ground truth, and return (H * scale, W * scale, 3) RGB.

    A class has the same color in every image.

    Args:
        image_rgb: (H, W, 3) image.
        instances: detections (``pred_boxes``, ``pred_classes``, ``scores``, perhaps ``pred_masks``), ground truth
            (``gt_boxes``, ``gt_classes``, perhaps ``gt_masks``), or the annotations of a Detectron2 record: dicts with
            ``bbox``, ``category_id`` (counted from 0) and ``bbox_mode`` (by default COCO's x, y, width, height). Boxes
            are in pixels of the image.
        class_names: names by class; a class without a name is called "class 3".
        score_thresh: minimum score of the detections that are drawn.
        scale: scale of the returned image, for images too small for labels.
    """
    is_detected = isinstance(instances, Instances) and instances.has("scores")
    if is_detected:
        instances = instances[instances.scores >= score_thresh].to("cpu")
    boxes, classes = _read(instances)
    height, width = image_rgb.shape[:2]
    labels = [_label(class_names, c) for c in classes]
    if is_detected:
        labels = [f"{label} {score:.0%}" for label, score in zip(labels, instances.scores.tolist(), strict=True)]
    masks = _masks(instances)
    drawn = Visualizer(image_rgb, scale=scale).overlay_instances(
        boxes=boxes.clip(0, [width, height, width, height]),
        masks=masks,
        labels=labels,
        assigned_colors=[palette_color(c) for c in classes],
        # Outlines of boxes hide little; through filled masks the image has to stay visible.
        alpha=0.9 if masks is None else 0.5,
    )
    return drawn.get_image()


def draw_panoptic(
    image_rgb: NDArray[np.uint8],
    ids: Tensor,
    segments: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw a ``panoptic_seg``, with void as it is, and return (H * scale, W * scale, 3) RGB.

    A class of stuff has the same color in every image, a class of things shades of it. ``ids`` are (H, W), ``segments``
    dicts with "id", "isthing", "category_id" (a row of the class head) and perhaps "score"; see :func:`draw_instances`.
    """
    rows = range(1 + max((x["category_id"] for x in segments), default=0))
    names = [_label(class_names, row) for row in rows]
    colors = [[255 * x for x in palette_color(row)] for row in rows]
    metadata = Metadata(thing_classes=names, stuff_classes=names, thing_colors=colors, stuff_colors=colors)
    # The Visualizer writes areas into the dicts that it gets.
    segments = [dict(x) for x in segments]
    visualizer = _PanopticVisualizer(image_rgb, metadata, scale=scale)
    return visualizer.draw_panoptic_seg(ids.cpu(), segments, alpha=0.5).get_image()


def class_name(class_names: Sequence[str | None] | None, index: int) -> str:
    """Return the name of a class, or "class 3" if it has none."""
    name = class_names[index] if class_names is not None and 0 <= index < len(class_names) else None
    return name or f"class {index}"


class _PanopticVisualizer(Visualizer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._shades = itertools.cycle(_SHADES)

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        shade = next(self._shades)
        return tuple(min(1.0, shade * x + 0.1 * (shade > 1)) for x in color)


def _label(class_names: Sequence[str | None] | None, index: int) -> str:
    # Matplotlib reads text between dollars as a formula.
    return class_name(class_names, index).replace("$", r"\$")


def _masks(instances: Instances | Sequence[Mapping[str, Any]]) -> list[NDArray[np.bool_]] | None:
    """Return N (H, W) masks, if there are."""
    if isinstance(instances, Instances) and instances.has("pred_masks"):
        return list(instances.pred_masks.numpy())
    if isinstance(instances, Instances) and instances.has("gt_masks"):
        return list(instances.gt_masks.tensor.numpy())
    return None


def _read(instances: Instances | Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], list[int]]:
    """Return (N, 4) XYXY boxes, and N classes."""
    if isinstance(instances, Instances):
        prefix = "gt" if instances.has("gt_boxes") else "pred"
        boxes, classes = instances.get(f"{prefix}_boxes").tensor, instances.get(f"{prefix}_classes")
        return boxes.double().cpu().numpy(), classes.tolist()
    boxes = [
        BoxMode.convert([float(v) for v in x["bbox"]], x.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for x in instances
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), [int(x["category_id"]) for x in instances]
