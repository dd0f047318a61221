"""Small datasets and images for the tests of ``detr_d2.data``."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture(scope="session")
def coco_paths(real_data):
    """Return the image folder and the annotation file of the 50 real training images."""
    folder = real_data / "coco"
    return folder / "train2017", folder / "annotations" / "instances_train2017.json"


@pytest.fixture(scope="session")
def coco_records(coco_paths):
    """Return the 50 real training records, with annotation ids, and their contiguous category ids."""
    images, annotations = map(str, coco_paths)
    name = "detr_d2_test_coco_train"
    records = load_coco_json(annotations, images, name, extra_annotation_keys=["id"])
    yield records, MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    MetadataCatalog.remove(name)


@pytest.fixture
def make_image(tmp_path):
    """Return a function that writes an image of random pixels and returns its path."""

    def make(width=60, height=40, name="image.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def make_annotation():
    """Return a function that makes an annotation; keys with the value ``...`` are left out."""

    def make(**changes):
        annotation = {
            "id": 7,
            "bbox": [5.0, 6.0, 20.0, 10.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": 0,
        }
        annotation.update(changes)
        return {key: value for key, value in annotation.items() if value is not ...}

    return make


@pytest.fixture
def coco_catalog(tmp_path, make_image):
    """Register COCO files for one test: ``coco_catalog(name, category_ids, annotations)``.

    Each annotation is (category id, bbox in XYWH) in the one image, which is 60 x 40 pixels.
    """
    names = []

    def register(name, category_ids, annotations=((1, (5, 6, 20, 10)),)):
        names.append(name)
        make_image(name=f"{name}.png")
        defaults = {"image_id": 1, "iscrowd": 0, "area": 200, "segmentation": []}
        content = {
            "info": {},
            "images": [{"id": 1, "file_name": f"{name}.png", "width": 60, "height": 40}],
            "categories": [{"id": index, "name": f"class {index}"} for index in category_ids],
            "annotations": [
                {"id": number, "category_id": category, "bbox": list(box), **defaults}
                for number, (category, box) in enumerate(annotations, start=1)
            ],
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        return path

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
