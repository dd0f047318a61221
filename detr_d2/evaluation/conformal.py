"""Score thresholds of each class with a guaranteed rate of errors: conformal risk control (arXiv 2208.02814).

An image's loss is at most 1 and monotone in the threshold. For n calibration images with the mean loss R(t) at the
threshold t, the most useful t with

    (n R(t) + 1) / (n + 1) <= bound                                                          (equation 4)

has an expected loss of at most ``bound`` on a new image (theorem 1), if the n + 1 images are exchangeable. The
expectation is over the calibration images too: with an unlucky set the loss can be higher.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.analysis import find_overlaps, in_crowd, match


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of a class, and what it achieves on the n calibration images."""

    threshold: float
    risk: float  # R at the threshold; NaN without images.
    images: int  # n
    min_bound: float  # The lowest bound that a threshold guarantees with these images.
    is_guaranteed: bool  # False: no threshold meets the bound; this one is the closest to it.


def recall_threshold(scores: NDArray, images: NDArray, objects: NDArray, bound: float) -> ClassThreshold:
    """Return the highest threshold that bounds the share of missed objects.

    The loss of an image is the share of its objects that no detection with score >= threshold matches.

    Args:
        scores: (D,) scores in [0, 1] of the detections that match an object, a different one each.
        images: (D,) int, the image of each detection.
        objects: (n,) int, number of objects of each image, at least 1.
        bound: in (0, 1).
    """
    order = np.argsort(scores)
    shares = 1 / objects[images[order]]
    never_found = len(objects) - shares.sum()
    thresholds = _candidates(scores)
    lost = np.searchsorted(scores[order], thresholds, side="left")
    totals = never_found + np.concatenate([[0.0], np.cumsum(shares)])[lost]
    return _control(thresholds[::-1], totals[::-1], len(objects), bound)


def false_alarm_threshold(highest: NDArray, bound: float) -> ClassThreshold:
    """Return the lowest threshold that bounds the share of images with a false alarm.

    The loss of an image is 1 if a detection with score >= threshold matches no object, otherwise 0.

    Args:
        highest: (n,) highest score in [0, 1] of such a detection in each image; -1 without one.
        bound: in (0, 1).
    """
    thresholds = _candidates(highest[highest >= 0])
    totals = len(highest) - np.searchsorted(np.sort(highest), thresholds, side="left")
    return _control(thresholds, totals, len(highest), bound)


def _candidates(scores: NDArray) -> NDArray:
    """Return 0, 1 and the thresholds halfway between scores, ascending: the loss is constant in between.

    Runtimes compute slightly different scores, which should not fall on the other side.
    """
    edges = np.unique(np.concatenate([[0.0, 1.0], scores.astype(np.float64)]))
    return np.concatenate([[0.0], (edges[1:] + edges[:-1]) / 2, [1.0]])


def _control(thresholds: NDArray, totals: NDArray, n: int, bound: float) -> ClassThreshold:
    """Choose the first threshold that meets the bound, or else the last; ``totals`` are n R(t), descending."""
    risks = (totals + 1) / (n + 1)
    # Sums of shares are not exact.
    meets = risks <= bound + 1e-12
    chosen = int(np.argmax(meets)) if meets.any() else len(thresholds) - 1
    return ClassThreshold(
        threshold=float(thresholds[chosen]),
        risk=float(totals[chosen] / n) if n else np.nan,
        images=n,
        min_bound=float(risks[-1]),
        is_guaranteed=bool(meets.any()),
    )


def control_missed(coco_eval: COCOeval, bound: float) -> list[ClassThreshold]:
    """Return a :func:`recall_threshold` for each class, from the images that show it.

    Detections are matched with objects of their class by COCO's rules at IoU 0.5, after ``coco_eval.evaluate()``.
    Crowds do not count as objects.
    """
    overlaps = find_overlaps(coco_eval)
    matches = match(overlaps)
    found = (matches >= 0) & ~in_crowd(overlaps, matches)
    results = []
    for k in range(len(coco_eval.params.catIds)):
        objects = overlaps.object_images[~overlaps.crowd & (overlaps.object_classes == k)]
        shown, counts = np.unique(objects, return_counts=True)
        detections = found & (overlaps.detection_classes == k)
        images = np.searchsorted(shown, overlaps.detection_images[detections])
        results.append(recall_threshold(overlaps.scores[detections], images, counts, bound))
    return results


def control_false_alarms(coco_eval: COCOeval, bound: float) -> list[ClassThreshold]:
    """Return a :func:`false_alarm_threshold` for each class, from all images.

    Detections are matched as by :func:`control_missed`. Those in crowds are no false alarms.
    """
    overlaps = find_overlaps(coco_eval)
    false = match(overlaps) < 0
    results = []
    for k in range(len(coco_eval.params.catIds)):
        highest = np.full(len(coco_eval.params.imgIds), -1.0)
        alarms = false & (overlaps.detection_classes == k)
        np.maximum.at(highest, overlaps.detection_images[alarms], overlaps.scores[alarms])
        results.append(false_alarm_threshold(highest, bound))
    return results


CONTROLS: dict[str, Callable[[COCOeval, float], list[ClassThreshold]]] = {
    "missed": control_missed,
    "false alarms": control_false_alarms,
}
"""The rates that can be bounded."""
