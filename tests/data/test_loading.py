"""Loading, category ids from a COCO file to the result file, and a subset to overfit."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from detr_d2.data import DetrDatasetMapper, load_training_records, memorizing_config, overfit_config
from detr_d2.utils.errors import UserError


@pytest.fixture
def records(make_image, make_annotation):
    """Return an image with objects, one of crowds, one without annotations, one where the key is missing."""
    record = {"file_name": make_image(), "height": 40, "width": 60}
    lists = ([make_annotation(), make_annotation(category_id="1")], [make_annotation(iscrowd=1)], [])
    return [{**record, "annotations": items} for items in lists] + [record]


@pytest.mark.parametrize(("filter_empty", "expected"), [(False, [2, 1, 0, 0]), (True, [2])])
def test_records_without_annotations(make_cfg, catalog, records, filter_empty, expected):
    """Detectron2's loader fails on them with a KeyError."""
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
    """Contiguous for the model, the file's own in the result file."""
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


@pytest.fixture
def overfit_cfg(make_cfg):
    """Return the config of a dataset of four records, two of which have objects."""

    def record(name, *crowds):
        return {"file_name": name, "annotations": [{"iscrowd": crowd} for crowd in crowds]}

    records = [record("empty"), record("first", 0), record("crowd", 1), record("second", 1, 0)]
    DatasetCatalog.register("to_overfit", lambda: records)
    MetadataCatalog.get("to_overfit").set(thing_classes=["a", "b"])
    yield make_cfg("DATASETS.TRAIN", ("to_overfit",))
    for name in [x for x in DatasetCatalog.list() if x.startswith("to_overfit")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_first_images_with_objects_without_augmentation(overfit_cfg):
    small = overfit_config(overfit_cfg, 2)
    (name,) = small.DATASETS.TRAIN
    assert small.DATASETS.TEST == (name,)
    assert [x["file_name"] for x in DatasetCatalog.get(name)] == ["first", "second"]
    assert MetadataCatalog.get(name).thing_classes == ["a", "b"]
    assert not small.INPUT.CROP.ENABLED
    assert small.INPUT.RANDOM_FLIP == "none"
    assert small.INPUT.MIN_SIZE_TRAIN == (small.INPUT.MIN_SIZE_TEST,)
    assert overfit_cfg.DATASETS.TRAIN == ("to_overfit",)
    assert overfit_config(overfit_cfg, 2).DATASETS.TRAIN == (name,)
    with pytest.warns(DeprecationWarning, match="overfit_config"):
        assert memorizing_config(overfit_cfg, 2) == small


def test_too_few_images(overfit_cfg):
    with pytest.raises(UserError, match="Overfitting needs 3 images with objects, but dataset 'to_overfit' has 2"):
        overfit_config(overfit_cfg, 3)
