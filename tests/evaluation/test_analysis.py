import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation import analyze, evaluate_results
from detr_d2.evaluation.analysis import best_point

A, B, C, D = (0, 0, 20, 20), (40, 0, 20, 20), (0, 40, 20, 20), (40, 40, 20, 20)
NOWHERE = (80, 80, 15, 15)


@pytest.fixture
def by_hand(make_coco, make_results, to_coco):
    """Evaluate two images with cats (3), dogs (2) and no cow; detections of every kind of outcome."""
    content = make_coco(
        {1: "cat", 4: "dog", 7: "cow"},
        3,
        [(1, 1, A), (1, 1, B), (1, 4, C), (2, 1, A), (2, 4, B), (2, 4, D, True)],
    )
    results = make_results(
        (1, 1, A, 0.9),  # a cat that is found
        (1, 1, A, 0.8),  # and found again: wrong
        (1, 4, B, 0.7),  # a cat taken for a dog
        (1, 4, C, 0.6),  # a dog that is found
        (2, 1, NOWHERE, 0.5),  # nothing there
        (2, 1, A, 0.4),  # a cat that is found
        (2, 4, D, 0.3),  # in a crowd: counts neither way
        (2, 7, B, 0.2),  # a dog taken for a cow, of which there are none
    )
    return evaluate_results(to_coco(content), results)


def test_by_hand(by_hand):
    evaluation = analyze(by_hand)
    cat, dog, cow = evaluation.classes
    assert [(x.name, x.images, x.objects) for x in evaluation.classes] == [("cat", 2, 3), ("dog", 2, 2), ("cow", 0, 0)]
    # Cats by score: right, wrong, wrong, right. F1: 2/4, 2/5, 2/6, 4/7; kept to the last, so down to half of 0.4.
    assert (cat.best.f1, cat.best.threshold) == pytest.approx((400 / 7, 0.2))
    assert (cat.best.precision, cat.best.recall, cat.best.detections) == pytest.approx((50, 200 / 3, 4))
    # Dogs: wrong, right, and then one in a crowd. F1: 0, 2/4.
    assert (dog.best.f1, dog.best.threshold, dog.best.precision, dog.best.detections) == pytest.approx((50, 0.3, 50, 2))
    # COCO's precision at 101 recalls: 1 up to recall 1/3 (34 of them), 1/2 up to 2/3 (33), then 0.
    assert cat.ap50 == pytest.approx(100 * (34 + 33 / 2) / 101)
    assert dog.ap50 == pytest.approx(100 * 51 / 2 / 101)
    assert (cat.ar, dog.ar) == pytest.approx((200 / 3, 50))
    assert np.isnan([cow.ap, cow.ap50, cow.ar, cow.best.f1, cow.best.threshold]).all()
    # All: 0.9 right, 0.8 and 0.7 wrong, 0.6 right, 0.5 wrong, 0.4 right, 0.2 wrong, of 5. F1: 2/6 2/7 2/8 4/9 4/10 6/11
    overall = evaluation.overall
    assert (overall.best.f1, overall.best.threshold) == pytest.approx((600 / 11, 0.3))
    assert (overall.best.precision, overall.best.recall) == pytest.approx((50, 60))
    assert (overall.images, overall.objects) == (2, 5)
    assert overall.ap50 == pytest.approx((cat.ap50 + dog.ap50) / 2)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # Rows: cat, dog, cow, no object; columns: cat, dog, cow, missed. At the best threshold, 0.3: the crowd's
        # detection is left out, and so is the dog that is only taken for a cow below it.
        (None, [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]]),
        (0.1, [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [2, 0, 0, 0]]),
        # A threshold is kept itself.
        (0.7, [[1, 1, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0]]),
        (1.0, [[0, 0, 0, 3], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_confusions_by_hand(by_hand, threshold, expected):
    assert analyze(by_hand, threshold).confusion.tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_averages_are_pycocotools_of_one_class(random_case, to_coco, seed):
    """Evaluate every class with pycocotools as if it were the only one."""
    content, results = random_case(seed)
    coco = to_coco(content)
    evaluation = analyze(evaluate_results(coco, results))
    for category, result in zip(coco.cats, evaluation.classes, strict=True):
        alone = COCOeval(coco, coco.loadRes(results), "bbox")
        alone.params.catIds = [category]
        alone.evaluate()
        alone.accumulate()
        alone.summarize()
        expected = [100 * x if x >= 0 else np.nan for x in alone.stats[[0, 1, 8]]]
        assert [result.ap, result.ap50, result.ar] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(evaluation.classes[-1].ap)


@pytest.mark.parametrize("seed", range(3))
def test_the_confusions_sum_up_to_the_operating_point(random_case, to_coco, seed):
    content, results = random_case(seed)
    evaluation = analyze(evaluate_results(to_coco(content), results))
    matrix, best = evaluation.confusion, evaluation.overall.best
    assert matrix[:, :-1].sum() == best.detections
    assert matrix[:-1].sum(axis=1).tolist() == [x.objects for x in evaluation.classes]
    assert 100 * np.trace(matrix) / best.detections == pytest.approx(best.precision)
    assert 100 * np.trace(matrix) / evaluation.overall.objects == pytest.approx(best.recall)
    assert best.f1 == pytest.approx(2 / (1 / best.precision + 1 / best.recall))


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_is_better(random_case, to_coco, seed):
    content, results = random_case(seed, max_detections=20)
    coco_eval = evaluate_results(to_coco(content), results)
    best = analyze(coco_eval).overall.best.f1
    matrices = [analyze(coco_eval, x).confusion for x in np.arange(0, 1, 0.01)]
    assert max(200 * np.trace(m) / (m[:, :-1].sum() + m[:-1].sum()) for m in matrices) == pytest.approx(best)


def test_equal_scores_are_kept_or_dropped_together():
    point = best_point(np.array([0.9, 0.5, 0.5, 0.5, 0.2]), np.array([True, True, False, False, False]), 2)
    # One of one with recall 1/2 gives 2/3; the next threshold has 2 of 4, and the same; not 2 of 2.
    assert (point.threshold, point.detections) == pytest.approx((0.7, 1))


def test_nothing_right():
    point = best_point(np.array([0.9, 0.5]), np.array([False, False]), 3)
    assert np.isnan(point.threshold)
    assert (point.precision, point.recall, point.f1, point.detections) == (0, 0, 0, 0)


def test_no_results_at_all(make_coco, to_coco):
    """AP is 0, not NaN, where objects are annotated."""
    evaluation = analyze(evaluate_results(to_coco(make_coco({1: "cat", 2: "dog"}, 1, [(1, 1, A)])), []))
    assert (evaluation.overall.ap, evaluation.classes[0].ap, evaluation.classes[0].ar) == (0, 0, 0)
    assert np.isnan(evaluation.classes[1].ap)
    assert evaluation.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_masks(make_coco, make_results, to_coco):
    """Equal boxes, disjoint masks: an evaluation of masks must compare these."""
    content = make_coco({1: "cat"}, 1, [(1, 1, (0, 0, 20, 20))])
    content["annotations"][0]["segmentation"] = [[0, 0, 20, 0, 20, 20]]
    coco = to_coco(content)
    other = coco.annToRLE({**content["annotations"][0], "segmentation": [[0, 0, 0, 20, 20, 20]]})
    results = [{**make_results((1, 1, (0, 0, 20, 20), 0.9))[0], "segmentation": other}]
    assert analyze(evaluate_results(coco, results, "bbox")).overall.ap == pytest.approx(100)
    assert analyze(evaluate_results(coco, results, "segm")).overall.best.f1 == 0
