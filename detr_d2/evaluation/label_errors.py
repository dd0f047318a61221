"""Ranking of likely label errors: annotations compared with predictions, matched as the criterion matches them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from detr_d2.criterion.matching import HungarianMatcher, MatchingCost
from detr_d2.structures import Output, Size, Targets
from detr_d2.utils.box_ops import iou, xyxy_to_cxcywh

KINDS = {
    "missing": "objects without an annotation",
    "class": "annotations of the wrong class",
    "box": "boxes that do not fit their object",
    "surplus": "annotations without an object",
}
"""Description of every kind of error."""

# A pair that overlaps less is no match: every annotation is assigned a prediction, however far away.
_MIN_MATCH_IOU = 0.1
# An annotation with less evidence, a product of score and IoU, is surplus; with more, its class or box is in question.
_MIN_EVIDENCE = 0.2
# Share of a detection inside a crowd from which it may be one of its objects.
_MIN_CROWD_SHARE = 0.5


@dataclass(frozen=True)
class Annotations:
    """The G annotations of an image."""

    boxes: NDArray  # (G, 4) float, absolute XYXY.
    classes: NDArray  # (G,) int, from 0.
    crowd: NDArray  # (G,) bool, True for a group of objects, which is never an error.


@dataclass(frozen=True)
class Candidates:
    """The D objects that a model predicts in an image, with a score for each of K classes."""

    boxes: NDArray  # (D, 4) float, absolute XYXY.
    scores: NDArray  # (D, K) float in [0, 1]; 0 where the model returned none.

    @classmethod
    def from_detections(cls, boxes: NDArray, classes: NDArray, scores: NDArray, num_classes: int) -> "Candidates":
        """Merge detections of one box under several classes: (N, 4) XYXY, (N,) int and (N,) float."""
        unique, rows = np.unique(boxes.reshape(-1, 4), axis=0, return_inverse=True)
        matrix = np.zeros((len(unique), num_classes))
        np.maximum.at(matrix, (rows.reshape(-1), classes), scores)
        return cls(unique, matrix)


@dataclass(frozen=True)
class Finding:
    """A likely label error."""

    kind: str  # A key of :data:`KINDS`.
    suspicion: float  # In (0, 1], comparable within a kind.
    image: int  # Index of the image.
    annotation: int | None  # Index among the image's annotations; None for a missing object.
    annotated_class: int | None
    suggested_class: int | None  # None for a surplus annotation.
    predicted_box: tuple[float, ...] | None  # Absolute XYXY; None for a surplus annotation.


def rank_findings(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings of every kind, the most suspicious first."""
    ranked = {kind: [] for kind in KINDS}
    for finding in sorted(findings, key=lambda x: -x.suspicion):
        ranked[finding.kind].append(finding)
    return ranked


def find_label_errors(
    image: int, annotations: Annotations, candidates: Candidates, image_size: Size, cost: MatchingCost
) -> list[Finding]:
    """Compare the annotations of an image with the objects that a model predicts there.

    Predictions and annotations are matched one to one at minimum ``cost``, that of the model's training. An annotation
    has at most one error, the first of these that applies. p(k) is the highest product of a score of class k and the
    overlap (IoU) with the annotation, among its match and the predictions that no annotation matches:

    - surplus: 1 - max p, if max p is below 0.2;
    - class: max p - p of the annotated class, if another class has max p;
    - box: the match's score of the annotated class times 1 - IoU.

    A prediction without a match is a missing object: its score times 1 - the highest IoU with an annotation, or with
    another such prediction of a higher score.

    Args:
        image: index of the image, for the findings.
        annotations, candidates: those of the image.
        image_size: height and width of the image, in pixels.
        cost: cost of the matching.
    """
    objects = np.flatnonzero(~annotations.crowd)
    overlaps = _pairwise_iou(candidates.boxes, annotations.boxes[objects])
    matches = _match(annotations, objects, candidates, image_size, cost)
    matched = matches >= 0
    # A distant prediction may belong to an object whose annotation is missing.
    matched[matched] = overlaps[matches[matched], np.flatnonzero(matched)] >= _MIN_MATCH_IOU
    free = np.ones(len(candidates.boxes), bool)
    free[matches[matched]] = False
    findings = []
    for column, row in enumerate(objects.tolist()):
        match = int(matches[column]) if matched[column] else None
        findings += _annotation_errors(
            image, row, int(annotations.classes[row]), match, candidates, overlaps[:, column], free
        )
    return findings + _missing_objects(image, annotations, candidates, free)


def _annotation_errors(
    image: int,
    annotation: int,
    annotated: int,
    match: int | None,
    candidates: Candidates,
    overlaps: NDArray,
    free: NDArray,
) -> list[Finding]:
    """Return the error of one annotation, if there is one; ``overlaps`` (D,) are those with the candidates."""
    usable = free.copy()
    if match is not None:
        usable[match] = True
    evidence = candidates.scores[usable] * overlaps[usable, None]
    by_class = evidence.max(axis=0, initial=0.0)
    if by_class.max() < _MIN_EVIDENCE:
        return _finding("surplus", 1 - by_class.max(), image, annotation, annotated)
    best = int(by_class.argmax())
    if best != annotated:
        box = candidates.boxes[usable][evidence[:, best].argmax()]
        return _finding("class", by_class[best] - by_class[annotated], image, annotation, annotated, best, box)
    if match is None:
        return []
    suspicion = candidates.scores[match, annotated] * (1 - overlaps[match])
    return _finding("box", suspicion, image, annotation, annotated, annotated, candidates.boxes[match])


def _missing_objects(image: int, annotations: Annotations, candidates: Candidates, free: NDArray) -> list[Finding]:
    boxes, scores = candidates.boxes, candidates.scores.max(axis=1, initial=0.0)
    overlaps = _pairwise_iou(boxes, annotations.boxes).max(axis=1, initial=0.0)
    in_crowd = _share_inside(boxes, annotations.boxes[annotations.crowd]).max(axis=1, initial=0.0)
    rows = np.flatnonzero(free & (in_crowd < _MIN_CROWD_SHARE) & (scores > 0))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    # The overlap with those of higher scores, which come first.
    repeated = np.tril(_pairwise_iou(boxes[rows], boxes[rows]), k=-1).max(axis=1, initial=0.0)
    findings = []
    for row, duplicate in zip(rows.tolist(), repeated.tolist(), strict=True):
        suspicion = scores[row] * (1 - max(overlaps[row], duplicate))
        suggested = int(candidates.scores[row].argmax())
        findings += _finding("missing", suspicion, image, None, None, suggested, boxes[row])
    return findings


def _finding(
    kind: str,
    suspicion: float,
    image: int,
    annotation: int | None,
    annotated: int | None,
    suggested: int | None = None,
    box: NDArray | None = None,
) -> list[Finding]:
    predicted_box = None if box is None else tuple(box.tolist())
    finding = Finding(kind, float(suspicion), image, annotation, annotated, suggested, predicted_box)
    return [finding] if suspicion > 0 else []


def _match(
    annotations: Annotations, objects: NDArray, candidates: Candidates, image_size: Size, cost: MatchingCost
) -> NDArray:
    """Return (len(objects),) the candidate that each annotation is matched with, or -1."""
    if not len(objects) or not len(candidates.boxes):
        return np.full(len(objects), -1)
    height, width = image_size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes, targets = (
        xyxy_to_cxcywh(torch.as_tensor(x, dtype=torch.float32) / scale)[None]
        for x in (candidates.boxes, annotations.boxes[objects])
    )
    logits = cost.class_loss.logits(torch.as_tensor(candidates.scores, dtype=torch.float32))
    labels = torch.as_tensor(annotations.classes[objects], dtype=torch.int64)[None]
    counts = (len(objects),)
    costs = cost(Output(logits[None, None], boxes[None]), Targets(labels, targets, counts))
    return HungarianMatcher()(costs, counts)[0, 0].numpy()


def _pairwise_iou(boxes1: NDArray, boxes2: NDArray) -> NDArray:
    overlaps = iou(torch.as_tensor(boxes1)[:, None], torch.as_tensor(boxes2)[None])
    # NaN where both boxes have no area.
    return overlaps.nan_to_num(0.0).numpy()


def _share_inside(boxes: NDArray, regions: NDArray) -> NDArray:
    """Return (D, R) the share of each box that is inside each region."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return (high - low).clip(min=0).prod(axis=2) / np.maximum(area, 1e-9)[:, None]
