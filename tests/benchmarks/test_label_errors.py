"""Planted label errors are what they are called."""

import copy

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from benchmarks.label_errors import count_found, plant
from detr_d2.evaluation.label_fixes import Suggestion


def overlaps(boxes, others):
    return box_iou(*(box_convert(torch.tensor(x, dtype=torch.float64), "xywh", "xyxy") for x in (boxes, others)))


def test_plant_and_count():
    rng = np.random.default_rng(0)
    sizes = [[15, 12], [9, 20], [30, 8]]
    content = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(4)],
        "categories": [{"id": 3}, {"id": 8}],
        "annotations": [
            {"id": i, "image_id": i % 4, "category_id": 3, "bbox": [*rng.uniform(0, 60, 2).tolist(), *sizes[i % 3]]}
            for i in range(24)
        ],
    }
    before = copy.deepcopy(content)
    changed, planted = plant(content, 5, np.random.default_rng(1))
    assert content == before
    assert {kind: len(x) for kind, x in planted.items()} == {"missing": 5, "class": 5, "box": 5, "surplus": 5}
    after = {x["id"]: x for x in changed["annotations"]}
    assert len(after) == 24 - 5 + 5
    assert not {x["id"] for x in planted["missing"]} & set(after)
    assert {x["id"] for x in changed["annotations"][:19] if x["category_id"] == 8} == {
        x["id"] for x in planted["class"]
    }
    originals = {x["id"]: x["bbox"] for x in content["annotations"]}
    for x in planted["box"]:
        assert 0.4 < overlaps([x["bbox"]], [originals[x["id"]]]) < 0.65
    for x in planted["surplus"]:
        others = [y["bbox"] for y in after.values() if y["image_id"] == x["image_id"] and y is not x]
        assert overlaps([x["bbox"]], others).max() < 0.1
        assert x["bbox"][0] + x["bbox"][2] <= 100

    first, second, *_ = planted["missing"]
    image, near = {"id": first["image_id"]}, [first["bbox"][0] + 1, *first["bbox"][1:]]
    right = Suggestion(1, "missing", 0.9, image, None, 3, near)
    elsewhere = Suggestion(2, "missing", 0.9, {"id": 9}, None, 3, second["bbox"])
    assert count_found([right, right, elsewhere], planted["missing"]) == 1
    wrong = planted["class"][0]
    other_kind = Suggestion(3, "class", 0.9, {"id": wrong["image_id"]}, wrong, 3, None)
    assert count_found([other_kind], planted["class"]) == 1
    assert count_found([other_kind], planted["box"]) == 0
