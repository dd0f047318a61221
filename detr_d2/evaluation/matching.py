"""Matching of detections with objects by COCO's rules, at one IoU."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.coco import SHAPES

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Overlaps:
    """The D detections and G objects of a dataset, and the P pairs of them that overlap enough to match.

    Attributes:
        scores: (D,) float, falling.
        detection_classes: (D,) int, indices in COCOeval's ``catIds``.
        object_classes: (G,) int.
        object_images: (G,) int, indices in COCOeval's ``imgIds``.
        crowd: (G,) bool, regions with any number of objects; detections in them are neither right nor wrong.
        pairs: (P, 2) int of detection and object, in the order in which matching tries them.
    """

    scores: NDArray
    detection_classes: NDArray
    object_classes: NDArray
    object_images: NDArray
    crowd: NDArray
    pairs: NDArray


def find_overlaps(coco_eval: COCOeval) -> Overlaps:
    """Find the pairs, of any two classes, with an IoU from :data:`IOU_THRESHOLD`.

    Args:
        coco_eval: evaluated, so that masks are run-length encoded.
    """
    params = coco_eval.params
    classes = {category: k for k, category in enumerate(params.catIds)}
    shape = SHAPES[params.iouType]
    detections, objects, images = [], [], []
    pairs = [np.zeros((0, 2), int)]
    ious = [np.zeros(0)]
    for i, image in enumerate(params.imgIds):
        found = list(_most_confident(coco_eval.cocoDt.imgToAnns.get(image, ()), classes, params.maxDets[-1]))
        annotated = [x for x in coco_eval.cocoGt.imgToAnns.get(image, ()) if x["category_id"] in classes]
        if found and annotated:
            crowd = [int(x.get("iscrowd", 0)) for x in annotated]
            iou = mask.iou([x[shape] for x in found], [x[shape] for x in annotated], crowd)
            overlapping = np.argwhere(iou >= IOU_THRESHOLD)
            pairs.append(np.add(overlapping, (len(detections), len(objects))))
            ious.append(iou[tuple(overlapping.T)])
        detections += found
        objects += annotated
        images += [i] * len(annotated)

    scores = np.array([x["score"] for x in detections], float)
    detection_classes, object_classes = (
        np.array([classes[x["category_id"]] for x in annotations], int) for annotations in (detections, objects)
    )
    crowd = np.array([x.get("iscrowd", 0) for x in objects], bool)
    order = np.argsort(-scores, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    detection, object_ = np.concatenate(pairs).T
    # As COCOeval: a confident detection chooses first, an object before a crowd, then by overlap, then the later one.
    trial = np.lexsort((-object_, -np.concatenate(ious), crowd[object_], rank[detection]))
    return Overlaps(
        scores=scores[order],
        detection_classes=detection_classes[order],
        object_classes=object_classes,
        object_images=np.array(images, int),
        crowd=crowd,
        pairs=np.stack([rank[detection], object_], axis=1)[trial],
    )


def match(overlaps: Overlaps) -> NDArray:
    """Return (D,) the matched object of each detection, of its class, or -1. Only crowds match more than once."""
    detection, object_ = overlaps.pairs.T
    return _match(overlaps, overlaps.detection_classes[detection] == overlaps.object_classes[object_])


def match_rest(overlaps: Overlaps, matches: NDArray, min_score: float) -> NDArray:
    """Return (D,) the matched object of each detection from ``min_score`` that :func:`match` left, or -1.

    These objects, of other classes, are those that no detection of their class from ``min_score`` matches.
    """
    kept = overlaps.scores >= min_score
    found = np.zeros(len(overlaps.crowd), bool)
    found[matches[kept & (matches >= 0)]] = True
    detection, object_ = overlaps.pairs.T
    return _match(overlaps, (kept & (matches < 0))[detection] & ~(found | overlaps.crowd)[object_])


def _match(overlaps: Overlaps, allowed: NDArray) -> NDArray:
    """Match greedily, in the order of the allowed pairs."""
    matches = [-1] * len(overlaps.scores)
    crowd = overlaps.crowd.tolist()
    taken = [False] * len(crowd)
    for detection, object_ in overlaps.pairs[allowed].tolist():
        if matches[detection] < 0 and (crowd[object_] or not taken[object_]):
            matches[detection] = object_
            taken[object_] = True
    return np.array(matches, int)


def _most_confident(detections: list[dict[str, Any]], classes: dict[int, int], limit: int) -> Iterator[dict[str, Any]]:
    """Yield the ``limit`` best detections of each class in an image, as COCOeval chooses them."""
    seen = Counter()
    for x in sorted(detections, key=lambda x: -x["score"]):
        seen[x["category_id"]] += 1
        if x["category_id"] in classes and seen[x["category_id"]] <= limit:
            yield x
