"""Thresholds by conformal risk control: their definition, and their promise over repeated splits."""

import numpy as np
import pytest

from detr_d2.evaluation import evaluate_results
from detr_d2.evaluation.conformal import (
    control_false_alarms,
    control_missed,
    false_alarm_threshold,
    recall_threshold,
)


def losses(kind: str, images: list, threshold: float) -> np.ndarray:
    """Return the loss of images, (scores of found objects, number of objects) or scores of false alarms."""
    if kind == "recall":
        return np.array([1 - (scores >= threshold).sum() / count for scores, count in images])
    return np.array([float((scores >= threshold).any()) for scores in images])


def calibrate(kind: str, images: list, bound: float):
    if kind == "recall":
        index = np.repeat(np.arange(len(images)), [len(scores) for scores, _ in images])
        objects = np.array([count for _, count in images])
        return recall_threshold(np.concatenate([scores for scores, _ in images]), index, objects, bound)
    return false_alarm_threshold(np.array([max(scores, default=-1.0) for scores in images]), bound)


def sample(kind: str, count: int, rng: np.random.Generator) -> list:
    """Return images whose difficulty varies, so that losses within one are dependent."""
    images = []
    for _ in range(count):
        skill = rng.uniform(1, 6)
        if kind == "recall":
            objects = rng.integers(1, 9)
            images.append((rng.beta(skill, 2, rng.binomial(objects, 0.97)), objects))
        else:
            images.append(rng.beta(1, skill, rng.poisson(2)))
    return images


@pytest.mark.parametrize("kind", ["recall", "false alarms"])
@pytest.mark.parametrize("seed", range(3))
def test_definition(kind, seed):
    """The best of all thresholds between which losses change, if it meets equation 4, has the same losses."""
    images = sample(kind, 40, np.random.default_rng(seed))
    found = calibrate(kind, images, 0.2)
    scores = np.concatenate([x[0] if kind == "recall" else x for x in images])
    grid = np.unique([0.0, 1.0, *scores, *np.nextafter(scores, 2)])
    risks = np.array([losses(kind, images, t).mean() for t in grid])
    valid = grid[(40 * risks + 1) / 41 <= 0.2]
    best = valid.max() if kind == "recall" else valid.min()
    assert found.is_guaranteed
    assert found.images == 40
    assert np.array_equal(losses(kind, images, found.threshold), losses(kind, images, best))
    assert found.risk == pytest.approx(losses(kind, images, found.threshold).mean())
    assert found.min_bound == pytest.approx((40 * min(risks) + 1) / 41)


@pytest.mark.parametrize("kind", ["recall", "false alarms"])
@pytest.mark.parametrize(("count", "bound"), [(30, 0.2), (150, 0.1)])
def test_promise_over_repeated_splits(kind, count, bound):
    """The mean risk on other images is at most the bound, and at least the bound - 2 / (n + 1) (theorem 2)."""
    rng = np.random.default_rng(1)
    population = sample(kind, 3000, rng)
    risks = []
    for _ in range(200):
        order = rng.permutation(len(population))
        found = calibrate(kind, [population[i] for i in order[:count]], bound)
        test = [population[i] for i in order[count : count + 300]]
        risks.append(losses(kind, test, found.threshold).mean())
    error = 3 * np.std(risks) / np.sqrt(len(risks))
    assert bound - 2 / (count + 1) - error <= np.mean(risks) <= bound + error
    # Expectation over calibration sets: single ones are above it.
    assert max(risks) > bound


def test_too_few_images():
    """With 8 images no bound below 1 / 9 can be guaranteed, whatever they show."""
    images = [(np.array([0.9]), 1)] * 8
    found = calibrate("recall", images, 0.1)
    assert (found.is_guaranteed, found.threshold, found.min_bound) == (False, 0.0, pytest.approx(1 / 9))
    found = calibrate("recall", images, 0.12)
    assert found.is_guaranteed
    assert 0 < found.threshold < 0.9
    found = calibrate("false alarms", [np.array([0.5])] * 8, 0.1)
    assert (found.is_guaranteed, found.threshold) == (False, 1.0)
    empty = recall_threshold(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 0.5)
    assert (empty.is_guaranteed, empty.threshold) == (False, 0.0)


def test_losses_of_a_dataset(make_coco, make_results, to_coco):
    """By hand: images 1 and 2 show a cat each, the second found at 0.4; a crowd of cats; a dog never found."""
    box, other, far = (10, 10, 20, 20), (60, 10, 20, 20), (10, 60, 30, 30)
    coco = to_coco(
        make_coco(
            {2: "cat", 5: "dog", 9: "cow"},
            3,
            [(1, 2, box), (2, 2, box), (2, 2, far, True), (3, 5, box)],
        )
    )
    results = make_results(
        (1, 2, box, 0.9), (1, 2, box, 0.3), (2, 2, box, 0.4), (2, 2, far, 0.95), (3, 2, other, 0.6), (3, 5, other, 0.7)
    )
    coco_eval = evaluate_results(coco, results)
    cat, dog, cow = control_missed(coco_eval, 0.7)
    # One miss of two, (2 * 0.5 + 1) / 3 <= 0.7: halfway from 0.4 to 0.9.
    assert (cat.threshold, cat.risk, cat.images, cat.is_guaranteed) == (pytest.approx(0.65), 0.5, 2, True)
    assert (dog.images, dog.risk, dog.is_guaranteed) == (1, 1.0, False)
    assert (cow.images, cow.is_guaranteed) == (0, False)
    cat, dog, cow = control_false_alarms(coco_eval, 0.6)
    # One false alarm in three images, (1 + 1) / 4 <= 0.6: halfway from 0.3 to 0.6.
    assert (cat.threshold, cat.risk, cat.images) == (pytest.approx(0.45), pytest.approx(1 / 3), 3)
    assert dog.threshold == 0.0
    assert (cow.threshold, cow.risk) == (0.0, 0.0)
