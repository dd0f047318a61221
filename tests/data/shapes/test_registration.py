"""Datasets of shapes in Detectron2's catalogs."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data import DetrDatasetMapper, ShapesSpec, check_datasets, register_shapes
from detr_d2.data.shapes import STUFF_CLASSES, THING_CLASSES
from detr_d2.data.shapes.registration import shapes_folder

SPEC = ShapesSpec(num_images=8, seed=9, sides=(64, 96))


@pytest.fixture
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path))
    register_shapes("shapes_trial", SPEC)
    yield "shapes_trial"
    for name in ("shapes_trial", "shapes_trial_panoptic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_package_registers_two_splits_without_drawing_them():
    for name in ("shapes_train", "shapes_val"):
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).thing_classes == ["disc", "square", "triangle", "star", "ring", "cross"]


def test_loading_draws_and_a_second_time_reads(registered):
    records = DatasetCatalog.get(registered)
    assert len(records) == 8
    written = (shapes_folder(SPEC) / "instances.json").stat().st_mtime_ns
    assert len(DatasetCatalog.get(registered)) == 8
    assert (shapes_folder(SPEC) / "instances.json").stat().st_mtime_ns == written
    assert MetadataCatalog.get(registered).json_file.startswith(str(shapes_folder(SPEC)))


def test_other_parameters_go_to_another_folder():
    assert shapes_folder(SPEC) != shapes_folder(ShapesSpec(num_images=8, seed=9, sides=(64, 96), difficulty=0.6))


def test_the_dataset_check_has_nothing_to_say(registered, make_cfg, caplog):
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (registered,)
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 6, 30
    with caplog.at_level(logging.WARNING):
        check_datasets(cfg)
    assert not caplog.records


def test_things_and_stuff_of_the_same_images(registered, make_cfg, caplog):
    """The panoptic dataset has the same objects as the other, and stuff; its boxes are those of the instances."""
    metadata = MetadataCatalog.get(f"{registered}_panoptic")
    assert metadata.thing_classes == [*THING_CLASSES, *STUFF_CLASSES]
    things = DatasetCatalog.get(registered)
    mapper = DetrDatasetMapper(is_train=True, augmentations=[], with_masks=True)
    for record, instances in zip(DatasetCatalog.get(f"{registered}_panoptic"), things, strict=True):
        assert record["file_name"] == instances["file_name"]
        segments, objects = mapper(record)["instances"], mapper(instances)["instances"]
        is_thing = segments.gt_classes < 6
        assert torch.equal(segments[is_thing].gt_masks.tensor, objects.gt_masks.tensor)
        assert torch.equal(segments[is_thing].gt_boxes.tensor, objects.gt_boxes.tensor)
        assert torch.equal(segments[is_thing].gt_classes, objects.gt_classes)
        assert segments.gt_masks.tensor.sum(dim=0).eq(1).all()
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 10, "MODEL.DETR.NUM_OBJECT_QUERIES", 30)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"{registered}_panoptic",)
    with caplog.at_level(logging.WARNING):
        check_datasets(cfg)
    assert not caplog.records
