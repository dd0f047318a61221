"""What a COCO evaluation says about each class: AP, the best threshold, what is mistaken for what."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.matches import IOU_THRESHOLD, Overlaps, find_overlaps, match, match_rest


@dataclass(frozen=True)
class OperatingPoint:
    """What comes of keeping the detections with a score from ``threshold``; rates in percent.

    What cannot be computed is NaN: precision without detections, recall and F1 without objects, the threshold where no
    detection is right.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    detections: int


@dataclass(frozen=True)
class ClassResult:
    """AP, AP50 and AR (at 100 detections an image) in percent, NaN without objects; and the point of the best F1."""

    name: str
    images: int
    objects: int
    ap: float
    ap50: float
    ar: float
    best: OperatingPoint


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of K classes.

    Attributes:
        task: "bbox" or "segm", how overlaps were computed.
        overall: of all classes: AP, AP50 and AR averaged over the classes that have objects, the rest from the
            pooled detections at one threshold for all.
        classes: K results, in the order of the category ids.
        confusion: (K + 1, K + 1) int, what was there by what was detected from ``confusion_threshold``. The last
            column holds objects that were missed, the last row detections where no object is.
        confusion_threshold: a score.
        recall: (R,) the recalls, in percent, of ``precision``.
        precision: (K, R) in percent at IoU 0.5, COCO's interpolation; NaN rows for classes without objects.
        scores: (N,) thresholds, falling, of ``score_precision`` and ``score_recall``: (N,) of all classes, in percent.
    """

    task: str
    overall: ClassResult
    classes: list[ClassResult]
    confusion: NDArray
    confusion_threshold: float
    recall: NDArray
    precision: NDArray
    scores: NDArray
    score_precision: NDArray
    score_recall: NDArray


def analyze(coco_eval: COCOeval, score_threshold: float | None = None) -> Evaluation:
    """Take apart what COCOeval, or Detectron2's faster one, has accumulated with its usual parameters.

    Args:
        score_threshold: of the confusion matrix. None: the best of all classes together.
    """
    overlaps = find_overlaps(coco_eval)
    matches = match(overlaps)
    # (IoU thresholds, recalls, classes), where -1 stands for classes without objects.
    precision = _percent(coco_eval.eval["precision"][..., 0, -1])
    recall = _percent(coco_eval.eval["recall"][..., 0, -1])
    precision50 = precision[np.isclose(coco_eval.params.iouThrs, IOU_THRESHOLD)][0]

    def result(name: str, k: slice, in_class: NDArray, objects: NDArray) -> ClassResult:
        return ClassResult(
            name=name,
            images=len(np.unique(overlaps.object_images[objects])),
            objects=int(objects.sum()),
            ap=_mean(precision[..., k]),
            ap50=_mean(precision50[..., k]),
            ar=_mean(recall[..., k]),
            best=best_point(*_outcomes(overlaps, matches, in_class), int(objects.sum())),
        )

    real = ~overlaps.crowd
    everything = np.ones(len(overlaps.scores), bool)
    names = [coco_eval.cocoGt.cats[i]["name"] for i in coco_eval.params.catIds]
    classes = [
        result(name, slice(k, k + 1), overlaps.detection_classes == k, real & (overlaps.object_classes == k))
        for k, name in enumerate(names)
    ]
    overall = result("all", slice(None), everything, real)
    threshold = overall.best.threshold if score_threshold is None else score_threshold
    scores, right, kept = _sweep(*_outcomes(overlaps, matches, everything))
    return Evaluation(
        task=coco_eval.params.iouType,
        overall=overall,
        classes=classes,
        confusion=confusion_matrix(overlaps, matches, threshold, len(names)),
        confusion_threshold=threshold,
        recall=100 * np.asarray(coco_eval.params.recThrs),
        precision=precision50.T,
        scores=scores,
        score_precision=100 * right / kept,
        score_recall=100 * right / max(overall.objects, 1),
    )


def best_point(scores: NDArray, right: NDArray, num_objects: int) -> OperatingPoint:
    """The threshold with the highest F1 = 2 TP / (detections + objects); of several, the highest threshold.

    It lies halfway between the lowest score that is kept and the next.

    Args:
        scores: (N,) falling.
        right: (N,) bool, whether the detection found an object.
    """
    if not num_objects:
        return OperatingPoint(np.nan, np.nan, np.nan, np.nan, 0)
    if not right.any():
        return OperatingPoint(np.nan, 0.0 if len(scores) else np.nan, 0.0, 0.0, 0)
    thresholds, found, kept = _sweep(scores, right)
    f1 = 200 * found / (kept + num_objects)
    i = int(np.argmax(f1))
    following = np.append(thresholds, 0.0)[i + 1]
    return OperatingPoint(
        threshold=float(thresholds[i] + following) / 2,
        precision=float(100 * found[i] / kept[i]),
        recall=float(100 * found[i] / num_objects),
        f1=float(f1[i]),
        detections=int(kept[i]),
    )


def confusion_matrix(overlaps: Overlaps, matches: NDArray, threshold: float, num_classes: int) -> NDArray:
    """(K + 1, K + 1) int: what was there by what was detected with a score from ``threshold``.

    An object is first given to detections of its own class, as for AP; only what is left of both is paired across
    classes. So the diagonal holds the true positives. Crowds, and detections in them, are left out.
    """
    background = num_classes
    mistaken = match_rest(overlaps, matches, threshold)
    pairs = np.where(matches >= 0, matches, mistaken)
    kept = overlaps.scores >= threshold
    counted = kept & ~_in_crowd(overlaps, matches)
    # An index of -1 reads the background from the end.
    there = np.append(overlaps.object_classes, background)[pairs[counted]]
    missed = ~overlaps.crowd
    missed[pairs[kept & (pairs >= 0)]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    np.add.at(matrix, (there, overlaps.detection_classes[counted]), 1)
    np.add.at(matrix, (overlaps.object_classes[missed], background), 1)
    return matrix


def _outcomes(overlaps: Overlaps, matches: NDArray, chosen: NDArray) -> tuple[NDArray, NDArray]:
    """Scores of the chosen detections outside crowds, falling, and whether they found an object."""
    counted = chosen & ~_in_crowd(overlaps, matches)
    return overlaps.scores[counted], matches[counted] >= 0


def _in_crowd(overlaps: Overlaps, matches: NDArray) -> NDArray:
    return np.append(overlaps.crowd, False)[matches]


def _sweep(scores: NDArray, right: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Every different score, falling; how many detections from it on are right, and how many there are."""
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, int)
    return scores[last], np.cumsum(right)[last], last + 1


def _percent(values: NDArray) -> NDArray:
    return np.where(values < 0, np.nan, 100 * values)


def _mean(values: NDArray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
