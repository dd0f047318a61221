"""Panoptic quality (arXiv 1801.00868), with COCO's rules for void and crowds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = 0


@dataclass
class SegmentCounts:
    """What became of the segments of one class."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    overlap: float = 0.0
    """The sum of the true positives' intersections over union."""

    def __iadd__(self, other: "SegmentCounts") -> "SegmentCounts":
        self.true_positives += other.true_positives
        self.false_positives += other.false_positives
        self.false_negatives += other.false_negatives
        self.overlap += other.overlap
        return self


@dataclass(frozen=True)
class Quality:
    """Panoptic, segmentation and recognition quality in percent, equations (1) and (2) of the paper; PQ = SQ * RQ in a
    class. Over several classes each is the mean of those that occur, and NaN where none does."""

    pq: float
    sq: float
    rq: float
    classes: int = 1
    """How many occur, annotated or found."""


def count_segments(
    truth: NDArray,
    true_segments: Sequence[Mapping[str, Any]],
    found: NDArray,
    found_segments: Sequence[Mapping[str, Any]],
) -> dict[int, SegmentCounts]:
    """Match the segments of an image: one of each with more than half of their union in common, void left out.

    What lies for more than half in void or in crowds of its class is not counted, nor are crowds.

    Args:
        truth, found: (H, W) segment ids, 0 for void.
        true_segments: dicts with "id", "category_id" and perhaps "iscrowd".
        found_segments: dicts with "id" and "category_id".

    Returns:
        Counts by category id.
    """
    classes = {x["id"]: x["category_id"] for x in true_segments}
    crowd = {x["id"] for x in true_segments if x.get("iscrowd")}
    found_classes = {x["id"]: x["category_id"] for x in found_segments}
    true_area, found_area = _areas(truth), _areas(found)
    common = _common_areas(truth, found)
    counts: dict[int, SegmentCounts] = {x: SegmentCounts() for x in {*classes.values(), *found_classes.values()}}

    # By found segment: pixels that no annotation speaks of.
    ignored = Counter({j: area for (i, j), area in common.items() if i == VOID})
    union = {(i, j): true_area[i] + found_area[j] - area - ignored[j] for (i, j), area in common.items()}
    matched_truth, matched_found = set(), set()
    for (i, j), area in common.items():
        if i not in classes or j not in found_classes or classes[i] != found_classes[j]:
            continue
        if i in crowd:
            ignored[j] += area
        # No two matches share a segment.
        elif 2 * area > union[i, j]:
            counts[classes[i]] += SegmentCounts(true_positives=1, overlap=area / union[i, j])
            matched_truth.add(i)
            matched_found.add(j)
    for i in classes.keys() - matched_truth - crowd:
        counts[classes[i]].false_negatives += 1
    for j in found_classes.keys() - matched_found:
        if 2 * ignored[j] <= found_area[j]:
            counts[found_classes[j]].false_positives += 1
    return counts


def class_quality(counts: SegmentCounts) -> Quality:
    """NaN, and no class, if it neither was annotated nor found."""
    right = counts.true_positives
    total = right + (counts.false_positives + counts.false_negatives) / 2
    if not total:
        return Quality(np.nan, np.nan, np.nan, 0)
    segmentation = counts.overlap / right if right else 0.0
    return Quality(100 * counts.overlap / total, 100 * segmentation, 100 * right / total)


def mean_quality(qualities: Sequence[Quality]) -> Quality:
    occurring = [x for x in qualities if x.classes]
    if not occurring:
        return Quality(np.nan, np.nan, np.nan, 0)
    means = np.mean([(x.pq, x.sq, x.rq) for x in occurring], axis=0)
    return Quality(*means.tolist(), classes=len(occurring))


def _areas(ids: NDArray) -> Counter:
    values, areas = np.unique(ids, return_counts=True)
    return Counter(dict(zip(values.tolist(), areas.tolist(), strict=True)))


def _common_areas(truth: NDArray, found: NDArray) -> dict[tuple[int, int], int]:
    """How many pixels a true and a found segment share, for the pairs that share some."""
    pairs, areas = np.unique(truth.astype(np.int64) << 32 | found.astype(np.int64), return_counts=True)
    return {(pair >> 32, pair & 0xFFFFFFFF): area for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True)}
