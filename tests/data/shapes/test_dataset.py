"""Datasets of shapes: their files, their cache, and their names in Detectron2's catalogs."""

import importlib
import json
import logging
import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

import detr_d2.data.shapes
from detr_d2.data import DetrDatasetMapper, ShapesSpec, check_datasets, register_shapes
from detr_d2.data.panoptic.segments import segment_ids_to_rgb
from detr_d2.data.shapes import STUFF_CLASSES, THING_CLASSES
from detr_d2.data.shapes.dataset import SPLITS, cached_folder, shapes_folder, write_dataset
from detr_d2.data.shapes.scene import sample_scene
from detr_d2.utils.errors import UserError

SPEC = ShapesSpec(num_images=12, seed=5, sides=(64, 96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_dataset(SPEC, folder)
    return folder


def read_ids(path):
    red, green, blue = np.asarray(Image.open(path), dtype=np.int64).transpose(2, 0, 1)
    return red + 256 * green + 256**2 * blue


def test_instances_agree_with_the_scenes(folder):
    coco = COCO(str(folder / "instances.json"))
    assert [x["name"] for x in coco.loadCats(coco.getCatIds())] == list(THING_CLASSES)
    assert len(coco.imgs) == SPEC.num_images
    for index in range(SPEC.num_images):
        scene = sample_scene(SPEC, index)
        info = coco.imgs[index + 1]
        assert Image.open(folder / "images" / info["file_name"]).size == (info["width"], info["height"])
        annotations = coco.imgToAnns[index + 1]
        assert [x["category_id"] for x in annotations] == [thing + 1 for thing in scene.things]
        for i, annotation in enumerate(annotations):
            expected = scene.segments == len(scene.stuff) + i
            assert np.array_equal(coco.annToMask(annotation), expected)
            y, x = np.nonzero(expected)
            corners = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
            assert annotation["bbox"] == list(corners)
            assert annotation["area"] == expected.sum()
            assert not annotation["iscrowd"]


def test_images_keep_their_content(folder):
    stored = np.asarray(Image.open(folder / "images" / "000001.jpg"), dtype=float)
    assert np.abs(stored - sample_scene(SPEC, 0).image).mean() < 8


def test_panoptic_segments_cover_every_pixel_once(folder):
    panoptic = json.loads((folder / "panoptic.json").read_text())
    names = {x["id"]: (x["name"], x["isthing"]) for x in panoptic["categories"]}
    assert [name for name, is_thing in names.values() if not is_thing] == list(STUFF_CLASSES)
    for index, record in enumerate(panoptic["annotations"]):
        scene = sample_scene(SPEC, index)
        ids = read_ids(folder / "panoptic" / record["file_name"])
        assert set(np.unique(ids)) == {x["id"] for x in record["segments_info"]}
        expected = [STUFF_CLASSES[i] for i in scene.stuff] + [THING_CLASSES[i] for i in scene.things]
        assert [names[x["category_id"]][0] for x in record["segments_info"]] == expected
        for segment in record["segments_info"]:
            mask = np.asfortranarray(ids == segment["id"], dtype=np.uint8)
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == coco_mask.toBbox(coco_mask.encode(mask)).tolist()


def test_many_segments_fit_the_colors():
    rgb = segment_ids_to_rgb(np.array([[1, 255, 256, 65536 + 3]]))
    assert rgb.tolist() == [[[1, 0, 0], [255, 0, 0], [0, 1, 0], [3, 0, 1]]]


def test_a_folder_is_filled_once(tmp_path):
    calls = []

    def fill(folder):
        calls.append(folder)
        (folder / "a.txt").write_text("x")

    for _ in range(2):
        assert (cached_folder(tmp_path / "deep" / "set", fill) / "a.txt").read_text() == "x"
    assert len(calls) == 1


def test_of_several_processes_one_fills_and_the_others_wait(tmp_path):
    """As when tests, or ranks, load a dataset at the same time."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()

    def load():
        filled = []

        def fill(folder):
            filled.append(folder)
            (folder / "a.txt").write_text("x")
            time.sleep(0.3)
            (folder / "b.txt").write_text("y")

        barrier.wait(30)
        results.put((cached_folder(tmp_path / "set", fill) / "b.txt").read_text() * (1 + len(filled)))

    processes = [context.Process(target=load) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(results.get(timeout=30) for _ in processes) == ["y", "y", "yy"]
    assert sorted(x.name for x in tmp_path.iterdir() if x.suffix != ".lock") == ["set"]


def test_an_interrupted_fill_is_repeated(tmp_path):
    def fill(folder):
        (folder / "half.txt").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path / "set", fill)
    assert not (tmp_path / "set").exists()
    folder = cached_folder(tmp_path / "set", lambda folder: (folder / "all.txt").write_text("x"))
    assert [x.name for x in folder.iterdir()] == ["all.txt"]
    assert [x.name for x in tmp_path.iterdir() if x.suffix != ".lock"] == ["set"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="DETR_D2_CACHE"):
        cached_folder(tmp_path / "file" / "set", lambda folder: None)


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DETR_D2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shapes_folder(SPEC).parent == tmp_path / "detr_d2" / "shapes"
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path / "own"))
    assert shapes_folder(SPEC).parent == tmp_path / "own" / "shapes"


@pytest.mark.parametrize(("name", "folder"), [("shapes_train", "6ddd0af3c27a"), ("shapes_val", "dda785d91d9f")])
def test_cached_folders_keep_their_names(name, folder):
    """Files that an earlier version has cached are found."""
    assert shapes_folder(SPLITS[name]).name == folder


@pytest.fixture
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path))
    register_shapes("shapes_trial", SPEC)
    yield "shapes_trial"
    for name in ("shapes_trial", "shapes_trial_panoptic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_package_registers_splits_without_generating_them():
    splits = ("train", "val", "medium_train", "medium_val", "hard_train", "hard_val")
    for name in (f"shapes_{split}" for split in splits):
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).thing_classes == ["disc", "square", "triangle", "star", "ring", "cross"]


def test_loading_generates_and_a_second_time_reads(registered):
    records = DatasetCatalog.get(registered)
    assert len(records) == 12
    written = (shapes_folder(SPEC) / "instances.json").stat().st_mtime_ns
    assert len(DatasetCatalog.get(registered)) == 12
    assert (shapes_folder(SPEC) / "instances.json").stat().st_mtime_ns == written
    assert MetadataCatalog.get(registered).json_file.startswith(str(shapes_folder(SPEC)))


def test_other_parameters_go_to_another_folder():
    assert shapes_folder(SPEC) != shapes_folder(replace(SPEC, difficulty=0.6))


def test_the_dataset_check_finds_nothing(registered, make_cfg, caplog):
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


def test_an_own_dataset_of_the_same_name_stays(catalog, monkeypatch):
    """Also one that is registered before this package is imported."""
    own = DatasetCatalog.pop("shapes_train")
    try:
        catalog("shapes_train", ["mine"])
        importlib.reload(detr_d2.data.shapes)
        assert DatasetCatalog.get("shapes_train") == ["mine"]
    finally:
        DatasetCatalog["shapes_train"] = own
