"""From logits and relative boxes to Detectron2's results."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detr_d2.config import choice
from detr_d2.structures import Predictions
from detr_d2.utils.box_ops import cxcywh_to_xyxy


def box_instances(
    predictions: Predictions,
    image_sizes: list[tuple[int, int]],
    class_loss: str = "softmax",
    score_threshold: float = 0.0,
) -> list[Instances]:
    """As many detections an image as there are queries, or those with the higher scores, from the last decoder layer.

    With "softmax" every query is a detection of its best foreground class, also where no-object is the most
    probable one: average precision wants the whole ranking. With "focal" the best pairs of a query and a
    class count, so that a query may be found under several classes, or not at all. Boxes are not clipped to the
    image, as in the original.

    Args:
        image_sizes: (height, width) in pixels of each of the B results.
        class_loss: what the model was trained with, "softmax" or "focal".
        score_threshold: detections with a lower score are left out.

    Returns:
        B Instances with ``pred_boxes``, ``scores`` in [0, 1], ``pred_classes`` and ``queries``, the object query that
        each was found by, on the device.
    """
    scores, classes, queries = choice(_RANKINGS, "MODEL.DETR.CLASS_LOSS", class_loss)(predictions.logits[-1].float())
    boxes = cxcywh_to_xyxy(predictions.boxes[-1])
    if queries is None:
        queries = torch.arange(boxes.shape[1], device=boxes.device).expand(classes.shape)
    else:
        boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    scale = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=torch.float32)
    boxes = boxes * scale.to(scores.device, non_blocking=True)[:, None]
    rows = zip(image_sizes, boxes, scores, classes, queries, strict=True)
    found = [Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=c, queries=q) for size, b, s, c, q in rows]
    # Choosing makes the host wait for the device.
    return [x[x.scores >= score_threshold] for x in found] if score_threshold > 0 else found


def _best_class(logits: Tensor) -> tuple[Tensor, Tensor, None]:
    """(B, Q, classes + 1) logits -> (B, Q) scores and classes; the queries stay in their order."""
    scores, classes = logits.softmax(-1)[..., :-1].max(-1)
    return scores, classes, None


def _best_pairs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, Q, classes + 1) logits -> (B, Q) scores, classes and queries of the best pairs, the best first."""
    probabilities = logits[..., :-1].sigmoid()
    num_queries, num_classes = probabilities.shape[1:]
    scores, pairs = probabilities.flatten(1).topk(num_queries)
    return scores, pairs % num_classes, pairs // num_classes


_RANKINGS = {"softmax": _best_class, "focal": _best_pairs}
