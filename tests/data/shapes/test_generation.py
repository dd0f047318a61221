"""The files of a dataset of shapes, read back by COCO's own tools."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detr_d2.data.shapes.generation import write_dataset
from detr_d2.data.shapes.scene import draw_scene
from detr_d2.data.shapes.spec import STUFF_CLASSES, THING_CLASSES, ShapesSpec

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
        scene = draw_scene(SPEC, index)
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
    assert np.abs(stored - draw_scene(SPEC, 0).image).mean() < 8


def test_panoptic_segments_cover_every_pixel_once(folder):
    panoptic = json.loads((folder / "panoptic.json").read_text())
    names = {x["id"]: (x["name"], x["isthing"]) for x in panoptic["categories"]}
    assert [name for name, is_thing in names.values() if not is_thing] == list(STUFF_CLASSES)
    for index, record in enumerate(panoptic["annotations"]):
        scene = draw_scene(SPEC, index)
        ids = read_ids(folder / "panoptic" / record["file_name"])
        assert set(np.unique(ids)) == {x["id"] for x in record["segments_info"]}
        expected = [STUFF_CLASSES[i] for i in scene.stuff] + [THING_CLASSES[i] for i in scene.things]
        assert [names[x["category_id"]][0] for x in record["segments_info"]] == expected
        for segment in record["segments_info"]:
            mask = np.asfortranarray(ids == segment["id"], dtype=np.uint8)
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == coco_mask.toBbox(coco_mask.encode(mask)).tolist()


def test_many_segments_fit_the_colours():
    from detr_d2.data.shapes.generation import _to_rgb

    assert _to_rgb(np.array([[1, 255, 256, 65536 + 3]])).tolist() == [[[1, 0, 0], [255, 0, 0], [0, 1, 0], [3, 0, 1]]]
