"""Small panoptic datasets."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_d2.data import register_coco_panoptic_dataset


@pytest.fixture
def panoptic_files(tmp_path):
    """Write a json, its PNG and its image: 60 x 40 pixels, sky (id 70000) over ground (300), a car (5), a crowd (6)."""
    ids = np.full((40, 60), 300)
    ids[:15] = 70000
    ids[10:22, 8:31] = 5
    ids[30:36, 50:60] = 6
    ids[39] = 0
    folder = tmp_path / "panoptic"
    folder.mkdir()
    write_map(ids, folder / "a.png")
    Image.fromarray((ids % 251).astype(np.uint8)).save(tmp_path / "a.png")
    category = {70000: 21, 300: 9, 5: 3, 6: 3}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [
                    {"id": i, "category_id": category[i], "iscrowd": int(i == 6), "area": int((ids == i).sum())}
                    for i in category
                ],
            }
        ],
        "categories": [
            {"id": 21, "name": "sky", "isthing": 0},
            {"id": 3, "name": "car", "isthing": 1},
            {"id": 9, "name": "ground", "isthing": 0},
        ],
    }
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return path, folder, tmp_path, content, ids


@pytest.fixture
def registered(panoptic_files):
    """Return the name of a registered dataset of these files."""
    path, folder, images, *_ = panoptic_files
    register_coco_panoptic_dataset("own_panoptic", path, folder, images)
    yield "own_panoptic"
    DatasetCatalog.remove("own_panoptic")
    MetadataCatalog.remove("own_panoptic")


@pytest.fixture
def save_map():
    return write_map


def write_map(ids, path):
    """Write ids as a panoptic PNG."""
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)
