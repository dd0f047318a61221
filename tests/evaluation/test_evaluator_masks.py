"""AP of masks, and of the things among panoptic classes, as Detectron2 calls the evaluator."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from detr_d2.evaluation import DetrCOCOEvaluator

SIZE = 100
BOXES = [[10, 10, 50, 40], [60, 50, 90, 95], [5, 60, 40, 90]]


@pytest.fixture
def dataset(request, tmp_path):
    """Register two images: one of three rectangular objects of two classes, annotated as polygons, and an empty one."""
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 3 + 4 * (i == 2),
            "iscrowd": 0,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for i, (x0, y0, x1, y1) in enumerate(BOXES, 1)
    ]
    content = {
        "images": [{"id": i, "height": SIZE, "width": SIZE, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "masks.json").write_text(json.dumps(content))
    name = request.node.name
    register_coco_instances(name, {}, str(tmp_path / "masks.json"), str(tmp_path))
    DatasetCatalog.get(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def found(boxes: list[list[int]], classes: list[int]) -> dict:
    """Return a model's output: bool masks, each the rectangle of its box."""
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((SIZE, SIZE), pred_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)), pred_masks=masks)
    instances.pred_classes = torch.tensor(classes, dtype=torch.long)
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    return {"instances": instances}


def run(evaluator: COCOEvaluator, *outputs: dict) -> dict:
    evaluator.reset()
    for image_id, output in enumerate(outputs, 1):
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def test_masks_have_an_ap_of_their_own(dataset, tmp_path):
    """Right boxes and masks have 100; a wrong mask lowers the AP of masks only. An image has no detections."""
    evaluator = DetrCOCOEvaluator(dataset, str(tmp_path))
    right = found(BOXES, [0, 1, 0])
    results = run(evaluator, right, found([], []))
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    right["instances"].pred_masks[1] = False
    results = run(evaluator, right, found([], []))
    assert results["bbox"]["AP-dog"] == pytest.approx(100)
    assert (results["segm"]["AP-dog"], results["segm"]["AP-cat"]) == pytest.approx((0, 100))
    theirs = run(COCOEvaluator(dataset, output_dir=str(tmp_path / "theirs")), right, found([], []))
    assert results["segm"] == pytest.approx(dict(theirs["segm"]), nan_ok=True)
    assert (tmp_path / dataset / "segm" / "per_class.csv").is_file()


def test_nothing_detected_with_masks(dataset, tmp_path):
    """Zero masks."""
    results = run(DetrCOCOEvaluator(dataset, str(tmp_path)), found([], []), found([], []))
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0


def test_stuff_has_no_ap(dataset, tmp_path):
    """Of a panoptic model's detections things are compared; names are those of things."""
    metadata = MetadataCatalog.get(dataset)
    names = [*metadata.thing_classes, "sky"]
    MetadataCatalog.remove(dataset)
    MetadataCatalog.get(dataset).set(
        json_file=metadata.json_file,
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
        stuff_dataset_id_to_contiguous_id={187: 2},
    )
    output = found([*BOXES, [0, 0, 100, 30]], [0, 1, 0, 2])
    results = run(DetrCOCOEvaluator(dataset, str(tmp_path)), output, found([], []))
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert {x for x in results[task] if x.startswith("AP-")} == {"AP-cat", "AP-dog"}
