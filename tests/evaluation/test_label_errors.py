"""Ranking of label errors, on predictions and annotations that are written by hand or planted."""

import numpy as np
import pytest

from detr_d2.criterion.matching import MatchingCost
from detr_d2.evaluation.label_errors import Annotations, Candidates, find_label_errors, rank_findings

SIZE = (100, 200)
A, B, FAR = [10, 10, 50, 50], [60, 10, 100, 50], [150, 50, 190, 90]


@pytest.fixture(params=["softmax", "focal", "matchability"])
def find(request):
    """Return a function that finds the errors of an image.

    What is annotated is (box, class) or (box, class, True) for a crowd, and what is predicted (box, class, score).
    """
    cost = MatchingCost(class_loss=request.param)

    def run(annotated: list[tuple], predicted: list[tuple]) -> list:
        boxes = np.array([x[0] for x in annotated], float).reshape(-1, 4)
        classes = np.array([x[1] for x in annotated], int)
        annotations = Annotations(boxes, classes, np.array([len(x) > 2 for x in annotated], bool))
        columns = [np.array(x) for x in zip(*predicted, strict=True)] or [np.zeros((0, 4)), np.zeros(0, int), []]
        candidates = Candidates.from_detections(columns[0].astype(float), columns[1], columns[2], 3)
        return find_label_errors(7, annotations, candidates, SIZE, cost)

    return run


def test_nothing_is_wrong(find):
    assert find([(A, 0), (B, 1)], [(A, 0, 0.9), (B, 1, 0.8)]) == []
    assert find([], []) == []


def test_a_missing_object(find):
    """A second prediction of it, and one of an annotated object, are less suspicious by their overlap."""
    (finding,) = find([(A, 0)], [(A, 0, 0.9), (FAR, 2, 0.6)])
    assert (finding.kind, finding.image, finding.annotation, finding.suggested_class) == ("missing", 7, None, 2)
    assert finding.predicted_box == tuple(FAR)
    assert finding.suspicion == pytest.approx(0.6)
    half = [150, 50, 190, 70]
    suspicions = {x.predicted_box: x.suspicion for x in find([], [(FAR, 2, 0.6), (half, 2, 0.5)])}
    assert suspicions == pytest.approx({tuple(FAR): 0.6, tuple(half): 0.5 * (1 - 0.5)})
    suspicions = [x.suspicion for x in find([(FAR, 2)], [(FAR, 2, 0.6), (half, 2, 0.5)])]
    assert suspicions == pytest.approx([0.5 * (1 - 0.5)])


def test_a_wrong_class(find):
    """What the model gives the annotated class counts for the annotation, from another query too."""
    (finding,) = find([(A, 0)], [(A, 1, 0.9)])
    assert (finding.kind, finding.annotation, finding.annotated_class, finding.suggested_class) == ("class", 0, 0, 1)
    assert finding.suspicion == pytest.approx(0.9)
    assert finding.predicted_box == tuple(A)
    near = [10, 10, 50, 49]
    (finding, *_) = rank_findings(find([(A, 0)], [(A, 1, 0.7), (near, 0, 0.2)]))["class"]
    assert finding.suspicion == pytest.approx(0.7 - 0.2 * 39 / 40)


def test_a_neighbor_of_another_class_is_no_evidence(find):
    shifted = [20, 10, 60, 50]
    assert find([(A, 0), (shifted, 1)], [(A, 0, 0.5), (shifted, 1, 0.95)]) == []


def test_a_loose_box(find):
    (finding,) = find([([10, 10, 50, 30], 0)], [(A, 0, 0.8)])
    assert (finding.kind, finding.annotation, finding.suggested_class) == ("box", 0, 0)
    assert finding.suspicion == pytest.approx(0.8 * (1 - 0.5))
    assert finding.predicted_box == tuple(A)


def test_a_surplus_annotation_does_not_take_a_distant_prediction(find):
    """Matching assigns it the missing object's; both are found."""
    ranked = rank_findings(find([(A, 0)], [(FAR, 0, 0.9)]))
    assert [x.suspicion for x in ranked["surplus"]] == [1.0]
    assert [x.suspicion for x in ranked["missing"]] == pytest.approx([0.9])
    (finding,) = find([(A, 0)], [])
    assert (finding.kind, finding.suggested_class) == ("surplus", None)


def test_crowds_are_no_errors_and_explain_what_is_in_them(find):
    assert find([([0, 0, 110, 60], 0, True)], [(A, 0, 0.9), (B, 1, 0.9)]) == []
    assert [x.kind for x in find([(A, 0, True)], [(FAR, 0, 0.9)])] == ["missing"]


def test_planted_errors_are_ranked_first():
    """120 images with noisy predictions and 30 errors of each kind: 9 in 10 are among the first 30."""
    rng = np.random.default_rng(0)
    cost = MatchingCost(class_loss="focal")
    planted, findings = {kind: set() for kind in ("missing", "class", "box", "surplus")}, []
    for image in range(120):
        kind = list(planted)[image % 4]
        cells = rng.permutation(8)
        low = np.stack([cells % 4 * 50, cells // 4 * 50], 1) + rng.uniform(0, 10, (8, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 35, (8, 2))], 1)
        classes = rng.integers(3, size=8)
        # The last cell is empty.
        noise = rng.normal(0, 1.5, (7, 4))
        corners = rng.uniform(0, 50, (20, 2))
        predicted = np.concatenate([boxes[:7] + noise, np.hstack([corners, corners + 30])])
        scores = np.concatenate([rng.uniform(0.5, 0.95, 7), rng.uniform(0, 0.2, 20)])
        candidates = Candidates.from_detections(predicted, np.append(classes[:7], rng.integers(3, size=20)), scores, 3)
        annotated, labels = boxes[:7].copy(), classes[:7].copy()
        if kind == "missing":
            annotated, labels = annotated[1:], labels[1:]
            planted[kind].add((image, int(classes[0])))
        elif kind == "surplus":
            annotated, labels = boxes, classes
            planted[kind].add((image, 7))
        else:
            planted[kind].add((image, 0))
        if kind == "class":
            labels[0] = (labels[0] + 1) % 3
        if kind == "box":
            annotated[0, 2:] -= 0.35 * (annotated[0, 2:] - annotated[0, :2])
        annotations = Annotations(annotated, labels, np.zeros(len(labels), bool))
        findings += find_label_errors(image, annotations, candidates, SIZE, cost)
    for kind, ranked in rank_findings(findings).items():
        assert [x.suspicion for x in ranked] == sorted((x.suspicion for x in ranked), reverse=True)
        found = {(x.image, x.suggested_class if kind == "missing" else x.annotation) for x in ranked[:30]}
        assert len(found & planted[kind]) >= 27, kind
