"""The evaluator as Detectron2 calls it, against Detectron2's own."""

import json
import logging
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from detr_d2.evaluation import DetrCOCOEvaluator
from detr_d2.evaluation.report import FILES


@pytest.fixture
def register(tmp_path):
    """Return a function that registers the content of an annotation file as a dataset, again at every call."""
    name = "evaluated"

    def unregister():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def make(content: dict) -> str:
        unregister()
        file = tmp_path / "annotations.json"
        file.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(file), str(tmp_path))
        DatasetCatalog.get(name)
        return name

    yield make
    unregister()


def run(evaluator: COCOEvaluator, content: dict, results: list[dict]) -> dict:
    """Evaluate ``results`` as if a model had predicted them."""
    classes = {x["id"]: i for i, x in enumerate(content["categories"])}
    evaluator.reset()
    for image in content["images"]:
        found = [x for x in results if x["image_id"] == image["id"]]
        boxes = torch.tensor([x["bbox"] for x in found], dtype=torch.float64).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((image["height"], image["width"]), pred_boxes=Boxes(boxes))
        instances.scores = torch.tensor([x["score"] for x in found], dtype=torch.float64)
        instances.pred_classes = torch.tensor([classes[x["category_id"]] for x in found], dtype=torch.long)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    return evaluator.evaluate()


def test_detectron2s_metrics_and_the_files(register, random_case, tmp_path):
    content, results = random_case(0)
    name = register(content)
    ours = run(DetrCOCOEvaluator(name, str(tmp_path / "ours")), content, results)
    theirs = run(COCOEvaluator(name, output_dir=str(tmp_path / "theirs")), content, results)
    assert ours.keys() == theirs.keys()
    assert ours["bbox"] == pytest.approx(theirs["bbox"], nan_ok=True)
    folder = tmp_path / "ours" / name
    assert sorted(x.name for x in folder.iterdir()) == sorted(FILES)
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["overall"]["ap"] == pytest.approx(theirs["bbox"]["AP"])
    for x in written["classes"][:3]:
        assert x["ap"] == pytest.approx(theirs["bbox"][f"AP-{x['name']}"])
    assert (tmp_path / "ours" / "coco_instances_results.json").is_file()


def test_edited_annotations_are_evaluated_again(register, random_case, tmp_path):
    """The same output folder, other annotations."""
    content, results = random_case(0)
    first = run(DetrCOCOEvaluator(register(content), str(tmp_path)), content, results)
    content["annotations"] = content["annotations"][:3]
    name = register(content)
    second = run(DetrCOCOEvaluator(name, str(tmp_path)), content, results)
    assert second["bbox"]["AP"] != first["bbox"]["AP"]
    written = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert written["overall"]["ap"] == pytest.approx(second["bbox"]["AP"])


@pytest.mark.parametrize("annotations", [[], None, "crowds"])
def test_without_annotations_there_is_a_message_and_no_ap(register, random_case, tmp_path, caplog, annotations):
    """No list of annotations, an empty one, crowds only; an earlier evaluation in the same folder is removed."""
    content, results = random_case(0)
    run(DetrCOCOEvaluator(register(content), str(tmp_path)), content, results)
    if annotations is None:
        del content["annotations"]
    else:
        crowds = [x for x in content["annotations"] if x["iscrowd"]]
        content["annotations"] = crowds if annotations == "crowds" else []
    name = register(content)
    with caplog.at_level(logging.WARNING, "detr_d2"):
        assert not run(DetrCOCOEvaluator(name, str(tmp_path)), content, results)
    assert "evaluated has no annotated objects" in caplog.text
    assert str(tmp_path / "annotations.json") in caplog.text
    assert not list((tmp_path / name).iterdir())
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == len(results)


def test_nothing_detected_is_an_ap_of_zero(register, random_case, tmp_path, caplog):
    """Detectron2 has NaN, which no curve shows and no later AP is better than."""
    content, _ = random_case(0)
    name = register(content)
    with caplog.at_level(logging.INFO, "detr_d2"):
        metrics = run(DetrCOCOEvaluator(name, str(tmp_path)), content, [])["bbox"]
    assert "bbox: no detection matches an object" in caplog.text
    assert (metrics["AP"], metrics["AP50"], metrics["AP-cat"]) == (0, 0, 0)
    assert math.isnan(metrics["AP-never seen"])
    assert (tmp_path / name / "per_class.csv").is_file()
