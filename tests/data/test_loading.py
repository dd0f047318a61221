"""Loading, and category ids from a COCO file to the result file."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from detr_d2.data import DetrDatasetMapper, load_training_records


@pytest.fixture
def records(make_image, make_annotation):
    """An image with objects, one of crowds, one without annotations, one where the key is missing."""
    record = {"file_name": make_image(), "height": 40, "width": 60}
    lists = ([make_annotation(), make_annotation(category_id="1")], [make_annotation(iscrowd=1)], [])
    return [{**record, "annotations": items} for items in lists] + [record]


@pytest.mark.parametrize(("filter_empty", "expected"), [(False, [2, 1, 0, 0]), (True, [2])])
def test_records_without_annotations(make_cfg, catalog, records, filter_empty, expected):
    """Defect A7, edge case C2: Detectron2's loader fails on them with a KeyError."""
    catalog("mixed", records, thing_classes=["cat", "dog"])
    options = ("DATASETS.TRAIN", ("mixed",), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filter_empty)
    cfg = make_cfg(*options, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2)
    loaded = load_training_records(cfg)
    assert [len(record["annotations"]) for record in loaded] == expected
    assert "annotations" not in records[3]

    mapper = DetrDatasetMapper(is_train=True, augmentations=[])
    batch = next(iter(build_detection_train_loader(cfg, dataset=loaded, mapper=mapper)))
    assert all(len(sample["instances"]) in (0, 2) for sample in batch)


@pytest.mark.parametrize("category_ids", [[1, 23, 56], [0, 1, 2]])
def test_category_ids_there_and_back(coco_catalog, tmp_path, category_ids):
    """Edge cases C14, C15: contiguous for the model, the file's own in the result file."""
    boxes = [(5, 6, 20, 10), (30, 6, 20, 10), (5, 20, 20, 10)]
    coco_catalog("pets", category_ids, list(zip(category_ids, boxes, strict=True)))
    (record,) = DatasetCatalog.get("pets")
    sample = DetrDatasetMapper(is_train=True, augmentations=[])(record)
    classes = sample["instances"].gt_classes
    assert classes.tolist() == [0, 1, 2]

    found = Instances((40, 60))
    found.pred_boxes = Boxes(sample["instances"].gt_boxes.tensor)
    found.pred_classes = classes
    found.scores = torch.full((3,), 0.9)
    evaluator = COCOEvaluator("pets", output_dir=str(tmp_path / "out"), use_fast_impl=False, allow_cached_coco=False)
    evaluator.reset()
    evaluator.process([sample], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [item["category_id"] for item in results] == category_ids
    assert MetadataCatalog.get("pets").thing_classes == [f"class {index}" for index in category_ids]
