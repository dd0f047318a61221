"""From logits and relative boxes to Detectron2's results."""

import torch
from detectron2.structures import Boxes, Instances

from detr_d2.box_ops import cxcywh_to_xyxy
from detr_d2.structures import Predictions


def box_instances(predictions: Predictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
    """Every query of the last decoder layer as a detection.

    Where no-object is the most probable class, the best foreground class counts, with its low score:
    average precision wants the whole ranking. Boxes are not clipped to the image, as in the original.

    Args:
        image_sizes: (height, width) in pixels of each of the B results.

    Returns:
        B Instances with ``pred_boxes``, ``scores`` in [0, 1] and ``pred_classes``, on the device.
    """
    scores, classes = predictions.logits[-1].float().softmax(-1)[..., :-1].max(-1)
    scale = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=torch.float32)
    boxes = cxcywh_to_xyxy(predictions.boxes[-1]) * scale.to(scores.device, non_blocking=True)[:, None]
    rows = zip(image_sizes, boxes, scores, classes, strict=True)
    return [Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=c) for size, b, s, c in rows]
