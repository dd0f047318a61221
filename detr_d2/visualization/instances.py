"""Boxes, masks and labels drawn over an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray

_COLOURS = colormap(rgb=True, maximum=1)


def draw_instances(
    image_rgb: NDArray[np.uint8],
    instances: Instances | Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    score_thresh: float = 0.5,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw detections or ground truth over a copy of an image; a class has the same colour in every image.

    Args:
        image_rgb: (H, W, 3).
        instances: detections (``pred_boxes``, ``pred_classes``, ``scores``, perhaps ``pred_masks``), ground truth
            (``gt_boxes``, ``gt_classes``), or the annotations of a Detectron2 record: dicts with ``bbox``,
            ``category_id`` (counted from 0) and ``bbox_mode`` (by default COCO's x, y, width, height). Boxes are in
            pixels of the image.
        class_names: by class; "class 3" where there is none.
        score_thresh: detections below it are not drawn.
        scale: of the picture, for images too small for labels.

    Returns:
        (H * scale, W * scale, 3) RGB.
    """
    boxes, classes, scores = _read(instances)
    kept = np.arange(len(boxes)) if scores is None else np.flatnonzero(scores >= score_thresh)
    height, width = image_rgb.shape[:2]
    boxes = boxes[kept].clip(0, [width, height, width, height])
    classes = classes[kept]
    labels = [class_name(class_names, c) for c in classes]
    if scores is not None:
        labels = [f"{label} {score:.0%}" for label, score in zip(labels, scores[kept], strict=True)]
    picture = Visualizer(image_rgb, scale=scale).overlay_instances(
        boxes=boxes,
        masks=_masks(instances, kept),
        # What stands between dollars is a formula to matplotlib.
        labels=[label.replace("$", r"\$") for label in labels],
        assigned_colors=[class_colour(c) for c in classes],
    )
    return picture.get_image()


def class_name(class_names: Sequence[str | None] | None, index: int) -> str:
    """The name of a class, or "class 3" if it has none."""
    name = class_names[index] if class_names is not None and index < len(class_names) else None
    return name or f"class {index}"


def class_colour(index: int) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1], the same for a class wherever it is drawn."""
    return tuple(_COLOURS[index % len(_COLOURS)])


def _masks(instances: Instances | Sequence[Mapping[str, Any]], kept: NDArray) -> list[NDArray[np.bool_]] | None:
    """The (H, W) masks of the detections that are drawn, if they have some."""
    if not isinstance(instances, Instances) or not instances.has("pred_masks"):
        return None
    return [instances.pred_masks[i].cpu().numpy() for i in kept.tolist()]


def _read(
    instances: Instances | Sequence[Mapping[str, Any]],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
    """(N, 4) XYXY boxes, (N,) classes, and (N,) scores where there are some."""
    if not isinstance(instances, Instances):
        modes = [x.get("bbox_mode", BoxMode.XYWH_ABS) for x in instances]
        boxes = [
            BoxMode.convert(list(map(float, x["bbox"])), mode, BoxMode.XYXY_ABS)
            for x, mode in zip(instances, modes, strict=True)
        ]
        classes = np.array([int(x["category_id"]) for x in instances], dtype=np.int64)
        return np.array(boxes, dtype=np.float64).reshape(-1, 4), classes, None
    instances = instances.to("cpu")
    if instances.has("gt_boxes"):
        return instances.gt_boxes.tensor.double().numpy(), instances.gt_classes.numpy(), None
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    return boxes.double().numpy(), instances.pred_classes.numpy(), scores.double().numpy()
