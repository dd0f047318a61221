"""Which detection found which object, by COCO's rules at one overlap."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Overlaps:
    """The D detections and G objects of a dataset, and the P pairs of them that overlap enough to match.

    Attributes:
        scores: (D,) float, falling.
        detection_classes: (D,) int, positions in COCOeval's ``catIds``.
        object_classes: (G,) int.
        object_images: (G,) int, positions in COCOeval's ``imgIds``.
        crowd: (G,) bool, regions that hold any number of objects; detections in them count neither way.
        pairs: (P, 2) int of detection and object, in the order in which matching should try them.
    """

    scores: NDArray
    detection_classes: NDArray
    object_classes: NDArray
    object_images: NDArray
    crowd: NDArray
    pairs: NDArray


def find_overlaps(coco_eval: COCOeval, iou_threshold: float = IOU_THRESHOLD) -> Overlaps:
    """The pairs of ``coco_eval``'s images and categories with an IoU from ``iou_threshold``, of any two classes.

    Args:
        coco_eval: evaluated, so that masks are run-length encoded.
    """
    params = coco_eval.params
    classes = {category: k for k, category in enumerate(params.catIds)}
    shape = "bbox" if params.iouType == "bbox" else "segmentation"
    detections, objects, images = [], [], []
    pairs = [np.zeros((0, 2), int)]
    ious = [np.zeros(0)]
    for i, image in enumerate(params.imgIds):
        found = list(_most_confident(coco_eval.cocoDt.imgToAnns.get(image, ()), classes, params.maxDets[-1]))
        annotated = [x for x in coco_eval.cocoGt.imgToAnns.get(image, ()) if x["category_id"] in classes]
        if found and annotated:
            crowd = [int(x.get("iscrowd", 0)) for x in annotated]
            iou = mask.iou([x[shape] for x in found], [x[shape] for x in annotated], crowd)
            overlapping = np.argwhere(iou >= iou_threshold)
            pairs.append(overlapping + np.array([len(detections), len(objects)]))
            ious.append(iou[tuple(overlapping.T)])
        detections += found
        objects += annotated
        images += [i] * len(annotated)

    scores = np.array([x["score"] for x in detections], float)
    crowd = np.array([bool(x.get("iscrowd", 0)) for x in objects], bool)
    order = np.argsort(-scores, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    detection, object_ = np.concatenate(pairs).T
    # As COCOeval: a confident detection chooses first, an object before a crowd, then by overlap, then the later one.
    trial = np.lexsort((-object_, -np.concatenate(ious), crowd[object_], rank[detection]))
    return Overlaps(
        scores=scores[order],
        detection_classes=_classes(detections, classes)[order],
        object_classes=_classes(objects, classes),
        object_images=np.array(images, int),
        crowd=crowd,
        pairs=np.stack([rank[detection], object_], axis=1)[trial],
    )


def match(overlaps: Overlaps) -> NDArray:
    """(D,) the object of the same class that each detection found, or -1. Only crowds are found more than once."""
    detection, object_ = overlaps.pairs.T
    same_class = overlaps.detection_classes[detection] == overlaps.object_classes[object_]
    return _match(overlaps, overlaps.pairs[same_class], len(overlaps.scores))


def match_rest(overlaps: Overlaps, matches: NDArray, min_score: float) -> NDArray:
    """(D,) for detections from ``min_score`` that :func:`match` left alone, the object of another class, or -1.

    These are objects which no detection of their class from ``min_score`` found.
    """
    kept = overlaps.scores >= min_score
    found = np.zeros(len(overlaps.crowd), bool)
    found[matches[kept & (matches >= 0)]] = True
    detection, object_ = overlaps.pairs.T
    left = (kept & (matches < 0))[detection] & ~(found | overlaps.crowd)[object_]
    return _match(overlaps, overlaps.pairs[left], len(overlaps.scores))


def _match(overlaps: Overlaps, pairs: NDArray, num_detections: int) -> NDArray:
    matches = [-1] * num_detections
    crowd = overlaps.crowd.tolist()
    taken = [False] * len(crowd)
    for detection, object_ in pairs.tolist():
        if matches[detection] < 0 and (crowd[object_] or not taken[object_]):
            matches[detection] = object_
            taken[object_] = True
    return np.array(matches, int)


def _most_confident(detections: list[dict[str, Any]], classes: dict[int, int], limit: int) -> Iterator[dict[str, Any]]:
    """The ``limit`` best detections of each class, as COCOeval takes them from an image."""
    seen = Counter()
    for x in sorted(detections, key=lambda x: -x["score"]):
        seen[x["category_id"]] += 1
        if x["category_id"] in classes and seen[x["category_id"]] <= limit:
            yield x


def _classes(annotations: list[dict[str, Any]], classes: dict[int, int]) -> NDArray:
    return np.array([classes[x["category_id"]] for x in annotations], int)
