"""Matches against those in the ``evalImgs`` of pycocotools."""

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.analysis import find_overlaps, match
from detr_d2.evaluation.coco import evaluate_results


@pytest.fixture
def cocotools_matches():
    """Return a function that counts, by (class, score), detections that match an object, nothing and a crowd."""

    def count(coco, results) -> dict[tuple[int, float], list[int]]:
        coco_eval = COCOeval(coco, coco.loadRes(results), "bbox")
        coco_eval.params.iouThrs = np.array([0.5])
        coco_eval.evaluate()
        counts = {}
        num_areas = len(coco_eval.params.areaRng)
        for i, image in enumerate(coco_eval.evalImgs):
            # All areas are the first of every class, and images run fastest.
            if image is None or (i // len(coco_eval.params.imgIds)) % num_areas:
                continue
            k = coco_eval.params.catIds.index(image["category_id"])
            columns = zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
            for score, matched, ignored in columns:
                outcome = 2 if ignored else 0 if matched else 1
                counts.setdefault((k, score), [0, 0, 0])[outcome] += 1
        return counts

    return count


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_pycocotools(random_case, to_coco, cocotools_matches, seed):
    content, results = random_case(seed)
    coco = to_coco(content)
    overlaps = find_overlaps(evaluate_results(coco, results))
    matches = match(overlaps)
    counts = {}
    for k, score, i in zip(overlaps.detection_classes.tolist(), overlaps.scores.tolist(), matches, strict=True):
        outcome = 1 if i < 0 else 2 if overlaps.crowd[i] else 0
        counts.setdefault((k, score), [0, 0, 0])[outcome] += 1
    assert counts == cocotools_matches(coco, results)
    totals = np.sum(list(counts.values()), axis=0)
    assert (totals > 20).all()


def test_only_the_hundred_best_of_a_class_in_an_image_count(make_coco, make_results, to_coco):
    """As in COCOeval: the hundred and first, of the lowest score, is the only one on the object."""
    coco = to_coco(make_coco({1: "cat"}, 1, [(1, 1, (50, 50, 10, 10))]))
    wrong = [(1, 1, (0, 0, 5, 5), 0.9)] * 100
    overlaps = find_overlaps(evaluate_results(coco, make_results(*wrong, (1, 1, (50, 50, 10, 10), 0.1))))
    assert len(overlaps.scores) == 100
    assert (match(overlaps) == -1).all()
