"""Analysis of a COCO evaluation by class: the best threshold and the confusions, matched by COCO's rules."""

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
class OperatingPoint:
    """Rates in percent of the detections with score >= ``threshold``.

    NaN where undefined: precision without detections, recall and F1 without objects, the threshold without true
    positives.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    detections: int


@dataclass(frozen=True)
class ClassResult:
    """AP, AP50 and AR (100 detections per image) in percent, NaN without objects; and the point of the best F1."""

    name: str
    images: int
    objects: int
    ap: float
    ap50: float
    ar: float
    best: OperatingPoint


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of K classes."""

    task: str  # "bbox" or "segm", the shape of which the IoU was computed.
    # All classes together: AP, AP50 and AR averaged over the classes that have objects, the rest from the pooled
    # detections at one threshold for all.
    overall: ClassResult
    classes: list[ClassResult]  # In the order of the category ids.
    # (K + 1, K + 1) int, ground truth by predicted class, for scores >= ``confusion_threshold``. The last column holds
    # missed objects, the last row detections without an object.
    confusion: NDArray
    confusion_threshold: float
    recall: NDArray  # (R,) recalls of ``precision``, in percent.
    precision: NDArray  # (K, R) in percent at IoU 0.5, COCO's interpolation; NaN rows for classes without objects.
    scores: NDArray  # (N,) score thresholds of the next two, descending.
    score_precision: NDArray  # (N,) precision of all classes, in percent.
    score_recall: NDArray  # (N,) recall of all classes, in percent.


@dataclass(frozen=True)
class Overlaps:
    """The D detections and G objects of a dataset, and the P pairs of them that overlap enough to match."""

    scores: NDArray  # (D,) float, descending.
    detection_classes: NDArray  # (D,) int, indices in COCOeval's ``catIds``.
    detection_images: NDArray  # (D,) int, indices in COCOeval's ``imgIds``.
    object_classes: NDArray  # (G,) int, likewise.
    object_images: NDArray  # (G,) int, likewise.
    crowd: NDArray  # (G,) bool, regions with any number of objects; detections in them are ignored.
    pairs: NDArray  # (P, 2) int of detection and object, in the order in which matching tries them.


def analyze(coco_eval: COCOeval, score_threshold: float | None = None) -> Evaluation:
    """Analyze what COCOeval, or Detectron2's compiled one, has accumulated with its default parameters.

    The confusion matrix is for scores >= ``score_threshold``, by default the best threshold of all classes together.
    """
    overlaps = find_overlaps(coco_eval)
    matches = match(overlaps)
    # (IoU thresholds, recalls, classes); COCOeval has -1 for classes without objects.
    precision, recall = (coco_eval.eval[key][..., 0, -1] for key in ("precision", "recall"))
    precision, recall = (np.where(x < 0, np.nan, 100 * x) for x in (precision, recall))
    precision50 = precision[np.isclose(coco_eval.params.iouThrs, IOU_THRESHOLD)][0]

    def result(name: str, k: slice, detections: NDArray, objects: NDArray) -> ClassResult:
        return ClassResult(
            name=name,
            images=len(np.unique(overlaps.object_images[objects])),
            objects=int(objects.sum()),
            ap=_mean(precision[..., k]),
            ap50=_mean(precision50[..., k]),
            ar=_mean(recall[..., k]),
            best=best_point(overlaps.scores[detections], matches[detections] >= 0, int(objects.sum())),
        )

    counted, objects = ~in_crowd(overlaps, matches), ~overlaps.crowd
    names = [coco_eval.cocoGt.cats[i]["name"] for i in coco_eval.params.catIds]
    classes = []
    for k, name in enumerate(names):
        of_class = counted & (overlaps.detection_classes == k), objects & (overlaps.object_classes == k)
        classes.append(result(name, slice(k, k + 1), *of_class))
    overall = result("all", slice(None), counted, objects)
    threshold = overall.best.threshold if score_threshold is None else score_threshold
    scores, tp, kept = _sweep(overlaps.scores[counted], matches[counted] >= 0)
    return Evaluation(
        task=coco_eval.params.iouType,
        overall=overall,
        classes=classes,
        confusion=confusion_matrix(overlaps, matches, threshold, len(names)),
        confusion_threshold=threshold,
        recall=100 * np.asarray(coco_eval.params.recThrs),
        precision=precision50.T,
        scores=scores,
        score_precision=100 * tp / kept,
        score_recall=100 * tp / max(overall.objects, 1),
    )


def best_point(scores: NDArray, is_true_positive: NDArray, num_objects: int) -> OperatingPoint:
    """Find the threshold with the highest F1 = 2 TP / (detections + objects); of several, the highest threshold.

    It is halfway between the lowest score that is kept and the next. The (N,) ``scores`` are descending.
    """
    if not num_objects:
        return OperatingPoint(np.nan, np.nan, np.nan, np.nan, 0)
    if not is_true_positive.any():
        return OperatingPoint(np.nan, 0.0 if len(scores) else np.nan, 0.0, 0.0, 0)
    thresholds, tp, kept = _sweep(scores, is_true_positive)
    f1 = 200 * tp / (kept + num_objects)
    i = int(np.argmax(f1))
    following = np.append(thresholds, 0.0)[i + 1]
    return OperatingPoint(
        threshold=float(thresholds[i] + following) / 2,
        precision=float(100 * tp[i] / kept[i]),
        recall=float(100 * tp[i] / num_objects),
        f1=float(f1[i]),
        detections=int(kept[i]),
    )


def confusion_matrix(overlaps: Overlaps, matches: NDArray, threshold: float, num_classes: int) -> NDArray:
    """Count (K + 1, K + 1) pairs of ground truth and predicted class, of detections with score >= ``threshold``.

    Objects are first matched with detections of their class, as for AP; only unmatched ones are paired across classes.
    So the diagonal holds the true positives. Crowds, and detections in them, are left out.
    """
    background = num_classes
    pairs = np.where(matches >= 0, matches, match_rest(overlaps, matches, threshold))
    kept = overlaps.scores >= threshold
    counted = kept & ~in_crowd(overlaps, matches)
    # Index -1 reads the background, which is last.
    true_classes = np.append(overlaps.object_classes, background)[pairs[counted]]
    missed = ~overlaps.crowd
    missed[pairs[kept & (pairs >= 0)]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    np.add.at(matrix, (true_classes, overlaps.detection_classes[counted]), 1)
    np.add.at(matrix, (overlaps.object_classes[missed], background), 1)
    return matrix


def in_crowd(overlaps: Overlaps, matches: NDArray) -> NDArray:
    """Return (D,) bool, True for detections that :func:`match` matched with a crowd."""
    return np.append(overlaps.crowd, False)[matches]


def _sweep(scores: NDArray, is_true_positive: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return the distinct scores, descending, with the numbers of true positives and of detections at least as high."""
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    return scores[last], np.cumsum(is_true_positive)[last], last + 1


def _mean(values: NDArray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def find_overlaps(coco_eval: COCOeval) -> Overlaps:
    """Find the pairs, of any two classes, with an IoU of at least :data:`IOU_THRESHOLD`, after ``evaluate()``."""
    params = coco_eval.params
    classes = {category: k for k, category in enumerate(params.catIds)}
    shape = SHAPES[params.iouType]
    detections, objects, detection_images, object_images = [], [], [], []
    pairs = [np.zeros((0, 2), int)]
    ious = [np.zeros(0)]
    for i, image in enumerate(params.imgIds):
        predicted = list(_most_confident(coco_eval.cocoDt.imgToAnns.get(image, ()), classes, params.maxDets[-1]))
        annotated = [x for x in coco_eval.cocoGt.imgToAnns.get(image, ()) if x["category_id"] in classes]
        if predicted and annotated:
            crowd = [int(x.get("iscrowd", 0)) for x in annotated]
            iou = mask.iou([x[shape] for x in predicted], [x[shape] for x in annotated], crowd)
            overlapping = np.argwhere(iou >= IOU_THRESHOLD)
            pairs.append(np.add(overlapping, (len(detections), len(objects))))
            ious.append(iou[tuple(overlapping.T)])
        detections += predicted
        objects += annotated
        detection_images += [i] * len(predicted)
        object_images += [i] * len(annotated)

    scores = np.array([x["score"] for x in detections], float)
    detection_classes, object_classes = (
        np.array([classes[x["category_id"]] for x in annotations], int) for annotations in (detections, objects)
    )
    crowd = np.array([x.get("iscrowd", 0) for x in objects], bool)
    order = np.argsort(-scores, kind="stable")
    # The inverse permutation.
    rank = np.argsort(order)
    detection, object_ = np.concatenate(pairs).T
    # As in COCOeval: detections are matched in descending score order, each with an object rather than a crowd, then
    # with the highest overlap, then with the last.
    trial = np.lexsort((-object_, -np.concatenate(ious), crowd[object_], rank[detection]))
    return Overlaps(
        scores=scores[order],
        detection_classes=detection_classes[order],
        detection_images=np.array(detection_images, int)[order],
        object_classes=object_classes,
        object_images=np.array(object_images, int),
        crowd=crowd,
        pairs=np.stack([rank[detection], object_], axis=1)[trial],
    )


def match(overlaps: Overlaps) -> NDArray:
    """Return (D,) the matched object of each detection, of its class, or -1. Only crowds match more than once."""
    detection, object_ = overlaps.pairs.T
    return _match(overlaps, overlaps.detection_classes[detection] == overlaps.object_classes[object_])


def match_rest(overlaps: Overlaps, matches: NDArray, min_score: float) -> NDArray:
    """Return (D,) the object of another class that each detection left by :func:`match` is matched with, or -1.

    Only detections with score >= ``min_score`` take part, and only objects that none of these matches already.
    """
    kept = overlaps.scores >= min_score
    taken = overlaps.crowd.copy()
    taken[matches[kept & (matches >= 0)]] = True
    detection, object_ = overlaps.pairs.T
    return _match(overlaps, (kept & (matches < 0))[detection] & ~taken[object_])


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
