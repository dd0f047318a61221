"""Registering panoptic datasets, and the checks before training."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_d2.data import check_datasets, load_training_records, overfit_config, register_coco_panoptic_dataset
from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.registration import load_panoptic_json
from detr_d2.utils.errors import UserError


@pytest.fixture
def load(panoptic_files):
    """Return a function that loads the files after ``change(content)`` has changed the json."""
    path, folder, images, content, _ = panoptic_files

    def change_and_load(change):
        change(content)
        path.write_text(json.dumps(content))
        return load_panoptic_json(str(path), str(folder), str(images))

    return change_and_load


@pytest.fixture
def cfg_for(make_cfg, registered):
    def make(*options):
        cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 3, "MODEL.DETR.NUM_OBJECT_QUERIES", 7, *options)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (registered,)
        return cfg

    return make


def test_own_data(registered, panoptic_files):
    """Detectron2's catalogs have what its evaluators and its Visualizer need."""
    path, folder, images, *_ = panoptic_files
    metadata = MetadataCatalog.get(registered)
    assert metadata.thing_classes == metadata.stuff_classes == ["car", "ground", "sky"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0}
    assert metadata.stuff_dataset_id_to_contiguous_id == {9: 1, 21: 2}
    assert (metadata.panoptic_json, metadata.panoptic_root, metadata.image_root) == (
        str(path),
        str(folder),
        str(images),
    )
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert PanopticCategories.from_metadata(metadata).names == ["car", "ground", "sky"]
    (record,) = DatasetCatalog.get(registered)
    assert {key: record[key] for key in ("file_name", "image_id", "height", "width", "pan_seg_file_name")} == {
        "file_name": str(images / "a.png"),
        "image_id": 1,
        "height": 40,
        "width": 60,
        "pan_seg_file_name": str(folder / "a.png"),
    }
    found = [(x["id"], x["category_id"], x["isthing"], x["iscrowd"]) for x in record["segments_info"]]
    assert found == [(70000, 2, False, 0), (300, 1, False, 0), (5, 0, True, 0), (6, 0, True, 1)]


def test_registering_again(registered, panoptic_files, tmp_path):
    path, folder, images, *_ = panoptic_files
    assert register_coco_panoptic_dataset(registered, path, folder, images) == ["car", "ground", "sky"]
    with pytest.raises(UserError, match=r"'own_panoptic' is registered for .*choose another name"):
        register_coco_panoptic_dataset(registered, path, images, images)


def test_paths_are_checked(panoptic_files, tmp_path):
    path, folder, images, *_ = panoptic_files
    nowhere = tmp_path / "nowhere"
    for arguments, message in (
        ((nowhere, folder, images), f"{nowhere} does not exist"),
        ((path, nowhere, images), "correct panoptic_root"),
        ((path, folder, nowhere), "correct image_root"),
        ((path, folder, images, nowhere), "correct instances_json"),
    ):
        with pytest.raises(UserError, match=message):
            register_coco_panoptic_dataset("never", *arguments)
    assert "never" not in DatasetCatalog


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("categories"), r"has no list 'categories'.*its keys are images, annotations"),
        (lambda x: x.pop("annotations"), r"has no list 'annotations'"),
        (lambda x: x.pop("images"), r"has no list 'images'"),
        (lambda x: x["annotations"].clear(), r"has no annotations"),
        (lambda x: x["images"][0].pop("id"), r"lacks an 'id'"),
        (lambda x: x["annotations"][0].update(image_id=7), r"'image_id': 7.* can't be read \(no 7\)"),
        (lambda x: x["annotations"][0].pop("segments_info"), r"no 'segments_info'"),
        (lambda x: x["annotations"][0].update(segments_info=[3]), r"'image_id': 1.* can't be read"),
        (
            lambda x: x["annotations"][0]["segments_info"][1].update(category_id=77),
            r"category_id 77 of segment id 300 of .*a\.png",
        ),
    ],
)
def test_bad_files_are_named(load, panoptic_files, change, message):
    with pytest.raises(UserError, match=message) as error:
        load(change)
    assert str(panoptic_files[0]) in str(error.value)


def test_images_without_segments_are_left_out(load, caplog):
    with caplog.at_level(logging.WARNING):
        records = load(lambda x: x["images"].append({"id": 2, "file_name": "b.png", "height": 1, "width": 1}))
    assert len(records) == 1
    assert "1 of 2 images" in caplog.text


@pytest.mark.parametrize("masks", [True, False])
def test_checks_find_nothing(cfg_for, caplog, masks):
    """Also if the JSON has no boxes, which are then read from the PNG."""
    with caplog.at_level(logging.INFO):
        check_datasets(cfg_for("MODEL.MASK_ON", masks))
    assert not [x for x in caplog.records if x.levelno > logging.INFO]
    assert "3 objects of 3 classes; 1 crowds" in caplog.text


def test_number_of_classes_counts_stuff(cfg_for):
    with pytest.raises(UserError, match=r"has 3 classes of things and stuff \(car, ground, sky\): set .*NUM_CLASSES 3"):
        check_datasets(cfg_for("MODEL.DETR.NUM_CLASSES", 1))


def test_missing_files(cfg_for, panoptic_files):
    (panoptic_files[1] / "a.png").unlink()
    with pytest.raises(UserError, match=r"needs panoptic map .*a\.png, which does not exist"):
        check_datasets(cfg_for())
    panoptic_files[0].unlink()
    with pytest.raises(UserError, match=r"needs .*panoptic\.json, which does not exist"):
        check_datasets(cfg_for())


def test_malformed_box_names_its_segment(cfg_for, load):
    load(lambda x: x["annotations"][0]["segments_info"][1].update(bbox=[1, 2]))
    with pytest.raises(UserError, match=r"bbox \[1, 2\].* of segment id 300 of .*a\.png"):
        check_datasets(cfg_for())


def test_training_loads_segments(cfg_for, load, caplog, panoptic_files):
    """Images without annotations, but with segments, are not empty; those with crowds only are."""
    crowd = {"image_id": 2, "file_name": "b.png", "segments_info": [{"id": 6, "category_id": 3, "iscrowd": 1}]}
    Image.new("RGB", (60, 40)).save(panoptic_files[2] / "b.png")

    def add(content):
        content["images"].append({"id": 2, "file_name": "b.png", "height": 40, "width": 60})
        content["annotations"].append(crowd)

    load(add)
    for filtered in (True, False):
        records = load_training_records(cfg_for("DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered))
        assert [record["image_id"] for record in records] == ([1] if filtered else [1, 2])
        assert all("annotations" not in record for record in records)


def test_overfitting_a_subset_keeps_things_and_stuff(cfg_for):
    cfg = overfit_config(cfg_for(), 1)
    (name,) = cfg.DATASETS.TRAIN
    assert PanopticCategories.from_metadata(MetadataCatalog.get(name)).names == ["car", "ground", "sky"]
    assert len(DatasetCatalog.get(name)) == 1
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_separated_datasets_without_objects_are_refused(catalog, make_cfg, make_image):
    """Metadata that count things and stuff apart, and records with segments only."""
    record = {"file_name": make_image(), "pan_seg_file_name": "a.png", "segments_info": []}
    catalog("apart", [record], thing_classes=["car"], stuff_classes=["things", "sky"])
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("apart",)
    with pytest.raises(UserError, match="'apart' does not count its things and stuff as rows"):
        check_datasets(cfg)
