"""Conversion of logits, relative boxes and mask logits to Detectron2's instances."""

import math
from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from detr_d2.criterion import get_class_loss
from detr_d2.structures import Output, Size
from detr_d2.utils.box_ops import cxcywh_to_xyxy

# Masks that are resized at once: bounds the memory between logits and masks.
_CHUNK = 4


def box_instances(
    output: Output,
    image_sizes: Sequence[Size],
    class_loss: str = "softmax",
    score_threshold: float = 0.0,
    class_thresholds: Sequence[float] = (),
    nms_threshold: float = 1.0,
) -> list[Instances]:
    """Return the detections of the last decoder layer: as many per image as there are queries, or fewer by a threshold.

    With "softmax" every query is a detection of its best foreground class, also where no-object is more probable:
    average precision needs the whole ranking. With "focal" the best pairs of a query and a class are detections, so
    that a query may be detected with several classes, or not at all. Boxes are not clipped to the image, as in the
    original.

    Args:
        image_sizes: (height, width) in pixels of each of the B results.
        class_loss: class loss that the model was trained with; a name in :data:`~detr_d2.criterion.CLASS_LOSSES`.
        score_threshold: minimum score of a detection.
        class_thresholds: one more minimum for each of the K classes; (): none.
        nms_threshold: see :func:`non_maximum_suppression`.

    Returns:
        B Instances with ``pred_boxes``, ``scores`` in [0, 1], ``pred_classes`` and ``queries``, the object query of
        each detection, on the device.
    """
    scores, classes, queries = get_class_loss(class_loss).rank(output.logits[-1].float())
    boxes = cxcywh_to_xyxy(output.boxes[-1]).gather(1, queries[..., None].expand(-1, -1, 4))
    scale = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=torch.float32)
    boxes = boxes * scale.to(scores.device, non_blocking=True)[:, None]
    rows = zip(image_sizes, boxes, scores, classes, queries, strict=True)
    results = [Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=c, queries=q) for size, b, s, c, q in rows]
    results = [select_by_score(x, score_threshold, class_thresholds) for x in results]
    return [non_maximum_suppression(x, nms_threshold) for x in results]


def select_by_score(
    instances: Instances, score_threshold: float = 0.0, class_thresholds: Sequence[float] = ()
) -> Instances:
    """Return the detections that reach both thresholds; see :func:`box_instances`."""
    # Selecting makes the host wait for the device.
    if score_threshold > 0:
        instances = instances[instances.scores >= score_threshold]
    if len(class_thresholds):
        minimum = instances.scores.new_tensor(class_thresholds)[instances.pred_classes]
        instances = instances[instances.scores >= minimum]
    return instances


def non_maximum_suppression(instances: Instances, threshold: float) -> Instances:
    """Leave out detections whose IoU with a detection of the same class and a higher score exceeds ``threshold``.

    The others keep their order. With a threshold of 1 there is no suppression.
    """
    if threshold >= 1:
        return instances
    kept = batched_nms(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, threshold)
    return instances[kept.sort().values]


def resized_masks(
    logits: Tensor,
    *,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    threshold: float = 0.5,
) -> Tensor:
    """Return masks in the pixels of the result.

    The original resizes (bilinearly) to the padded images, applies the threshold, cuts the padding off, and resizes (to
    the nearest pixel) to the result. Here only the pixels that the result uses are computed, with equal values. Sizes
    are (height, width) in pixels.

    Args:
        logits: (N, h, w) logits over the padded image.
        padded_size, image_size, output_size: sizes of the images in the batch, of this one without padding, and of the
            result.
        threshold: probability above which a pixel belongs to a mask.

    Returns:
        (N, H, W) bool on the logits' device.
    """
    masks = torch.empty((len(logits), *output_size), dtype=torch.bool, device=logits.device)
    if not len(logits):
        return masks
    rows, columns = (
        _Samples(*sizes, logits.device)
        for sizes in zip(logits.shape[1:], padded_size, image_size, output_size, strict=True)
    )
    min_logit = math.log(threshold / (1 - threshold))
    for some, out in zip(logits.split(_CHUNK), masks.split(_CHUNK), strict=True):
        # Along x first, while the rows are few.
        x = some.float()
        x = torch.lerp(x[..., columns.low], x[..., columns.high], columns.weight)
        x = torch.lerp(x[:, rows.low], x[:, rows.high], rows.weight[:, None])
        torch.gt(x, min_logit, out=out)
    return masks


class _Samples:
    """Indices, along one axis, of the two logits on either side of every pixel of the result, and its place between."""

    def __init__(self, size: int, padded_size: int, image_size: int, output_size: int, device: torch.device):
        pixels = torch.arange(image_size, dtype=torch.float32)[None, None]
        pixels = F.interpolate(pixels, size=output_size, mode="nearest")[0, 0]
        position = ((pixels + 0.5) * (size / padded_size) - 0.5).clamp(min=0)
        low = position.long().clamp(max=size - 1)
        self.low = low.to(device, non_blocking=True)
        self.high = (low + 1).clamp(max=size - 1).to(device, non_blocking=True)
        self.weight = (position - low).to(device, non_blocking=True)
