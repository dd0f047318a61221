"""The dataset with suggested fixes."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr_d2.criterion.matching import MatchingCost
from detr_d2.evaluation.label_errors import rank_findings
from detr_d2.evaluation.label_fixes import apply_suggestions, find_in_image, to_suggestions


@pytest.fixture
def coco(make_coco, to_coco):
    """One error of every kind in one image, whose object ids are 1 to 4."""
    objects = [(1, 5, (0, 0, 20, 20)), (1, 2, (30, 0, 20, 10)), (1, 2, (0, 60, 20, 20)), (1, 5, (60, 60, 20, 20))]
    content = make_coco({5: "dog", 2: "cat"}, 1, objects)
    content["annotations"][1]["segmentation"] = [[30, 0, 50, 0, 50, 10]]
    return to_coco(content)


def test_fixes(coco):
    """A class, a box, a surplus and a missing object; the model's classes are in the order of the ids."""
    boxes = [[0, 0, 20, 20], [30, 0, 50, 20], [60, 60, 80, 80], [85, 30, 110, 50]]
    instances = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        pred_classes=torch.tensor([0, 0, 1, 1]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
    )
    ranked = rank_findings(find_in_image(coco, 1, instances, MatchingCost(class_loss="focal")))
    suggestions = to_suggestions(coco, [x for findings in ranked.values() for x in findings])
    fixed = apply_suggestions(coco.dataset, suggestions)
    findings = {x["kind"]: x for x in fixed["findings"]}
    assert {kind: x["annotation_id"] for kind, x in findings.items()} == {
        "missing": None,
        "class": 1,
        "box": 2,
        "surplus": 3,
    }
    assert [x["number"] for x in fixed["findings"]] == [1, 2, 3, 4]
    by_id = {x["id"]: x for x in fixed["annotations"]}
    assert sorted(by_id) == [1, 2, 4, 5]
    before = {x["id"]: x for x in coco.dataset["annotations"]}
    assert (by_id[1]["category_id"], by_id[1]["bbox"], by_id[1]["original"]) == (2, [0, 0, 20, 20], before[1])
    assert (by_id[2]["bbox"], by_id[2]["area"], "segmentation" in by_id[2]) == ([30, 0, 20, 20], 400, False)
    assert by_id[2]["original"]["segmentation"]
    assert by_id[4] == before[4]
    # Clipped to the image.
    assert (by_id[5]["bbox"], by_id[5]["category_id"], by_id[5]["image_id"]) == ([85, 30, 15, 20], 5, 1)
    assert [x["id"] for x in fixed["removed"]] == [3]
    assert "finding" not in before[1]
