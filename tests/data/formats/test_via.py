"""Conversion from VIA to COCO against COCO's own annotations; clipping against OpenCV's rasterization."""

import json
import logging

import cv2
import numpy as np
import pytest
from detectron2.structures.masks import polygon_area
from PIL import Image
from pycocotools.coco import COCO

from detr_d2.data.formats.outlines import clip
from detr_d2.data.split import split_images
from detr_d2.data.via import ViaClasses, read_via, via_to_coco
from detr_d2.utils.errors import UserError


def rect(x, y, width, height, **attributes):
    shape = {"name": "rect", "x": x, "y": y, "width": width, "height": height}
    return {"shape_attributes": shape, "region_attributes": attributes}


@pytest.fixture
def convert(tmp_path, make_image):
    """Return a function that converts regions by image; the images are 60 x 40 pixels."""

    def convert(regions, *args, **classes):
        entries = {}
        for name, items in regions.items():
            make_image(name=name)
            size = (tmp_path / name).stat().st_size
            entries[name] = {"filename": name, "size": size, "regions": items, "file_attributes": {}}
        (tmp_path / "via.json").write_text(json.dumps(entries))
        return via_to_coco(read_via(str(tmp_path / "via.json")), str(tmp_path), ViaClasses(**classes), *args)

    return convert


def test_boxes_and_masks_are_cocos_own(real_data, coco_paths):
    """The VIA files were made of COCO's annotations, rounded to pixels: where a box is found again, so is its class."""
    images, annotations = coco_paths
    converted = via_to_coco(read_via(str(real_data / "via" / "via1_region_data.json")), str(images))
    coco = json.loads(annotations.read_text())
    sizes = {x["file_name"]: (x["id"], x["height"], x["width"]) for x in coco["images"]}
    names = {x["id"]: x["name"] for x in coco["categories"]}
    our_names = {x["id"]: x["name"] for x in converted["categories"]}
    matched = 0
    for image in converted["images"]:
        coco_id, height, width = sizes[image["file_name"]]
        assert (image["height"], image["width"]) == (height, width)
        theirs = [x for x in coco["annotations"] if x["image_id"] == coco_id and not x["iscrowd"]]
        for ours in (x for x in converted["annotations"] if x["image_id"] == image["id"]):
            for other in theirs:
                close = np.abs(np.subtract(ours["bbox"], other["bbox"])).max() <= 1.5
                if close and our_names[ours["category_id"]] == names[other["category_id"]]:
                    matched += 1
                    break
    assert len(converted["annotations"]) == 95
    # The others are parts of an object that COCO outlines with several polygons.
    assert matched >= 85


def test_both_versions_give_the_same(real_data, coco_paths):
    files = (real_data / "via" / name for name in ("via1_region_data.json", "via2_project.json"))
    first, second = (json.dumps(via_to_coco(read_via(str(file)), str(coco_paths[0]))) for file in files)
    assert first == second


def test_pycocotools_reads_the_result(real_data, coco_paths, tmp_path):
    converted = via_to_coco(read_via(str(real_data / "via" / "via2_project.json")), str(coco_paths[0]))
    (tmp_path / "coco.json").write_text(json.dumps(converted))
    coco = COCO(str(tmp_path / "coco.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.25, abs=40)


def test_one_annotation_by_hand(convert):
    converted = convert({"b.png": [rect(5, 6, 20, 10, name="dog")], "a.png": []})
    assert converted["images"] == [
        {"id": 1, "file_name": "a.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "b.png", "width": 60, "height": 40},
    ]
    assert converted["annotations"] == [
        {
            "id": 1,
            "image_id": 2,
            "category_id": 1,
            "bbox": [5, 6, 20, 10],
            "area": 200,
            "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]],
            "iscrowd": 0,
        }
    ]
    assert converted["categories"] == [{"id": 1, "name": "dog"}]


def test_regions_beyond_the_image(convert, caplog):
    """Boxes partly outside are clipped, boxes fully outside dropped; both are counted and logged once."""
    regions = [
        rect(50, 30, 40, 40, n="x"),
        rect(-10, 0, 20, 5, n="x"),
        rect(70, 0, 5, 5, n="x"),
        rect(59, 0, 2, 9, n="x"),
    ]
    with caplog.at_level(logging.WARNING):
        converted = convert({"a.png": regions})
    assert [x["bbox"] for x in converted["annotations"]] == [[50, 30, 10, 10], [0, 0, 10, 5], [59, 0, 1, 9]]
    assert [x["area"] for x in converted["annotations"]] == [100, 50, 9]
    assert any(m.startswith("2 objects extend beyond") and "region 0 " in m for m in caplog.messages)
    assert any(m.startswith("1 objects have no area") and "region 2 " in m for m in caplog.messages)
    assert len(caplog.messages) == 2


def test_size_of_an_upright_image(tmp_path, convert):
    """The EXIF rotation is applied, as VIA does."""
    exif = Image.Exif()
    exif[0x0112] = 6
    convert({"a.png": [rect(1, 1, 5, 5, n="x")]})
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    entries = {"a": {"filename": "a.jpg", "size": -1, "regions": [rect(1, 1, 30, 50, n="x")]}}
    (tmp_path / "via.json").write_text(json.dumps(entries))
    converted = via_to_coco(read_via(str(tmp_path / "via.json")), str(tmp_path))
    assert converted["images"] == [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}]
    assert converted["annotations"][0]["bbox"] == [1, 1, 30, 50]


def test_a_replaced_image_is_logged(convert, tmp_path, caplog):
    convert({"a.png": [rect(1, 1, 5, 5, n="x")]})
    images = read_via(str(tmp_path / "via.json"))
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        via_to_coco(images, str(tmp_path))
    assert any("another file size" in m and "a.png" in m for m in caplog.messages)


def test_classes_are_sorted_or_as_requested(convert):
    regions = {"a.png": [rect(1, 1, 5, 5, n="dog"), rect(1, 1, 5, 5, n="cat")]}
    assert [x["category_id"] for x in convert(regions)["annotations"]] == [2, 1]
    requested = convert(regions, names=["dog", "bird", "cat"])
    assert requested["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 3, "name": "cat"}]
    assert [x["category_id"] for x in requested["annotations"]] == [1, 3]


def test_the_default_class_fills_gaps(convert):
    bare = convert({"a.png": [rect(1, 1, 5, 5), rect(2, 2, 5, 5)]}, default="balloon")
    assert bare["categories"] == [{"id": 1, "name": "balloon"}]
    mixed = convert({"a.png": [rect(1, 1, 5, 5, n="cat"), rect(2, 2, 5, 5)]}, default="other")
    assert [x["name"] for x in mixed["categories"]] == ["cat", "other"]


def test_classes_that_differ_in_case_are_logged(convert, caplog):
    with caplog.at_level(logging.WARNING):
        convert({"a.png": [rect(1, 1, 5, 5, n="Cat"), rect(1, 1, 5, 5, n="cat"), rect(1, 1, 5, 5, n="cow")]})
    assert [m for m in caplog.messages if "differ in upper and lower case" in m and "'Cat' and 'cat'" in m]


def test_unsupported_shapes_are_skipped_on_request(convert, caplog):
    point = {"shape_attributes": {"name": "point", "cx": 1, "cy": 2}, "region_attributes": {}}
    with pytest.raises(UserError, match="'point' of region 1"):
        convert({"a.png": [rect(1, 1, 5, 5), point]}, default="x")
    with caplog.at_level(logging.WARNING):
        converted = convert({"a.png": [rect(1, 1, 5, 5), point]}, True, default="x")
    assert len(converted["annotations"]) == 1
    assert any(m.startswith("1 regions of shapes without an outline were skipped") for m in caplog.messages)
    with pytest.raises(UserError, match="All 1 regions"):
        convert({"a.png": [point]}, True, default="x")


@pytest.mark.parametrize(
    ("regions", "classes", "message"),
    [
        ([], {}, "No image has a region"),
        ([rect(1, 1, 5, 5)], {}, "no attribute that could hold their class.*--default-class"),
        ([rect(1, 1, 5, 5, a="x", b="y")], {}, r"several attributes: a \(1 of 1 regions\), b .*--class-attribute"),
        ([rect(1, 1, 5, 5, a="x")], {"attribute": "nam"}, r"No region has the attribute 'nam'; there are: a \(1"),
        ([rect(1, 1, 5, 5, a="x"), rect(1, 1, 5, 5, a="")], {}, r"region 1 .* of image a\.png .* has no 'a'"),
        ([rect(1, 1, 5, 5, a="x")], {"names": ["y", "z"]}, "The class 'x' of region 0 .*categories y, z"),
        ([rect(1, 1, 5, 5, a="x")], {"names": ["x", "x"]}, "not all different"),
    ],
)
def test_unclear_classes(convert, regions, classes, message):
    with pytest.raises(UserError, match=message):
        convert({"a.png": regions}, **classes)


def test_missing_images(convert, tmp_path):
    convert({"a.png": [rect(1, 1, 5, 5, n="x")], "b.png": []})
    images = read_via(str(tmp_path / "via.json"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images do not exist, e\.g\. .*b\.png"):
        via_to_coco(images, str(tmp_path))
    with pytest.raises(UserError, match=r"folder .*nowhere does not exist"):
        via_to_coco(images, str(tmp_path / "nowhere"))


@pytest.fixture
def ten_images(convert):
    return convert({f"{i}.png": [rect(1, 1, 5, 5, n="x")] * i for i in range(10)})


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.01, 1), (0.99, 9)])
def test_split(ten_images, share, count):
    train, val = split_images(ten_images, share)
    assert len(val["images"]) == count
    assert train["categories"] == val["categories"]
    for part in (train, val):
        ids = {x["id"] for x in part["images"]}
        assert [x for x in ten_images["annotations"] if x["image_id"] in ids] == part["annotations"]
    files = [x["file_name"] for part in (train, val) for x in part["images"]]
    assert sorted(files) == [f"{i}.png" for i in range(10)]


def test_split_repeats(ten_images):
    assert split_images(ten_images, 0.5, seed=3) == split_images(ten_images, 0.5, seed=3)
    assert split_images(ten_images, 0.5, seed=3) != split_images(ten_images, 0.5, seed=4)


def test_a_class_that_only_validation_shows(convert, caplog):
    converted = convert({"a.png": [rect(1, 1, 5, 5, n="x")], "b.png": [rect(1, 1, 5, 5, n="y")]})
    with caplog.at_level(logging.WARNING):
        split_images(converted, 0.5)
    assert any("Only validation images show" in m for m in caplog.messages)


@pytest.mark.parametrize("share", [0, 1, -1, float("nan")])
def test_bad_shares(ten_images, share):
    with pytest.raises(UserError, match="between 0 and 1"):
        split_images(ten_images, share)


def test_one_image_cannot_be_split(convert):
    with pytest.raises(UserError, match="1 image can't be split"):
        split_images(convert({"a.png": [rect(1, 1, 5, 5, n="x")]}), 0.5)


def test_clipping_a_corner_by_hand():
    """A diamond around the corner of the image: a triangle is left."""
    diamond = np.array([(0, -10), (10, 0), (0, 10), (-10, 0)], dtype=float)
    inside = clip(diamond, (40, 40))
    assert {tuple(p) for p in inside.tolist()} == {(10, 0), (0, 10), (0, 0)}
    assert polygon_area(*inside.T) == 50


def test_clipping_keeps_what_is_inside():
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    outline = 20 + np.stack([10 * np.cos(angles), 5 * np.sin(angles)], axis=1)
    np.testing.assert_array_equal(clip(outline, (40, 40)), outline)


def test_nothing_inside():
    outside = clip(np.array([(50, 5), (60, 5), (60, 15), (50, 15)], dtype=float), (40, 40))
    assert outside.shape == (0, 2)


@pytest.mark.parametrize("seed", range(20))
def test_clipping_against_rasterization(seed):
    """A star of random rays across the image's borders: the same pixels are covered as when a larger canvas is cut."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    star = random.uniform(0, 200, 2) + random.uniform(20, 150, 9)[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    inside = clip(star, (200, 200))
    assert (inside >= 0).all()
    assert (inside <= 200).all()

    canvas = np.zeros((1000, 1000), np.uint8)
    cv2.fillPoly(canvas, [np.round(star + 400).astype(np.int32)], 1)
    expected = canvas[400:600, 400:600]
    assert polygon_area(*inside.T) == pytest.approx(expected.sum(), abs=0.02 * 200 * 200)
    if len(inside):
        ys, xs = np.nonzero(expected)
        box = [*inside.min(axis=0), *(inside.max(axis=0) - 1)]
        np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max(), ys.max()], atol=2)
