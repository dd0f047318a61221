"""Reading VIA files, and the outlines of their shapes against arithmetic by hand."""

import json

import cv2
import numpy as np
import pytest

from detr_d2.data.formats.via_file import read_via
from detr_d2.utils.errors import UserError

RECT = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 30, "height": 20}, "region_attributes": {}}


def entry(*regions, name="a.jpg", size=5):
    return {"filename": name, "size": size, "regions": list(regions), "file_attributes": {}}


def region(attributes=None, **shape):
    return {"shape_attributes": shape, "region_attributes": attributes or {}}


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a VIA file of the given content."""

    def read(content):
        path = tmp_path / "via.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_via(str(path))

    return read


@pytest.fixture
def read_one(read):
    """Return a function that reads one region."""
    return lambda item: read({"a": entry(item)})[0].regions[0]


def test_both_versions_of_the_same_annotations(real_data):
    via1, via2 = (read_via(str(real_data / "via" / f)) for f in ("via1_region_data.json", "via2_project.json"))
    assert len(via1) == 8
    for a, b in zip(via1, via2, strict=True):
        assert (a.file_name, a.bytes) == (b.file_name, b.bytes)
        assert [(x.shape, x.attributes) for x in a.regions] == [(x.shape, x.attributes) for x in b.regions]
    assert [image.file_name for image in via1] == sorted(image.file_name for image in via1)


def test_a_project_and_its_export_are_read_alike(read):
    entries = {"b.jpg5": entry(RECT, name="b.jpg"), "a.jpg5": entry()}
    exported = read(entries)
    project = read({"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}})
    assert exported == project
    assert [image.file_name for image in exported] == ["a.jpg", "b.jpg"]
    assert exported[0].regions == []


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "rect", "x": 1, "y": 2, "width": 30, "height": 20}, [1, 2, 31, 22]),
        ({"name": "polygon", "all_points_x": [5, 9, 7], "all_points_y": [1, 4, 8]}, [5, 1, 9, 8]),
        ({"name": "circle", "cx": 20, "cy": 30, "r": 5}, [15, 25, 25, 35]),
        ({"name": "ellipse", "cx": 20, "cy": 30, "rx": 5, "ry": 10}, [15, 20, 25, 40]),
        ({"name": "ellipse", "cx": 20, "cy": 30, "rx": 5, "ry": 10, "theta": np.pi / 2}, [10, 25, 30, 35]),
    ],
)
def test_shapes(read_one, shape, box):
    item = read_one(region(**shape))
    assert item.is_supported
    outline = item.outline()
    np.testing.assert_allclose([*outline.min(0), *outline.max(0)], box, atol=1e-9)


def area(outline):
    return cv2.contourArea(outline.astype(np.float32))


def test_a_rectangle(read_one):
    outline = read_one(region(name="rect", x=2, y=3, width=10, height=5)).outline()
    assert area(outline) == 50
    assert [*outline.min(0), *outline.max(0)] == [2, 3, 12, 8]


def test_a_circle_touches_its_box(read_one):
    outline = read_one(region(name="circle", cx=50, cy=60, r=20)).outline()
    np.testing.assert_allclose([*outline.min(0), *outline.max(0)], [30, 40, 70, 80])
    assert area(outline) == pytest.approx(np.pi * 400, rel=2e-3)
    np.testing.assert_allclose(np.hypot(*(outline - (50, 60)).T), 20)


def test_a_rotated_ellipse(read_one):
    """Rotated by 90 degrees the radii are swapped; by 30, the long axis points right and down."""

    def ellipse(cx, cy, theta):
        return read_one(region(name="ellipse", cx=cx, cy=cy, rx=20, ry=10, theta=theta)).outline()

    upright = ellipse(50, 60, np.pi / 2)
    np.testing.assert_allclose([*upright.min(0), *upright.max(0)], [40, 40, 60, 80])
    outline = ellipse(0, 0, np.pi / 6)
    np.testing.assert_allclose(outline[0], [20 * np.sqrt(3) / 2, 10])
    # Half the width is sqrt(20² cos² + 10² sin²).
    assert np.ptp(outline[:, 0]) == pytest.approx(2 * np.sqrt(400 * 0.75 + 100 * 0.25), rel=2e-3)


@pytest.mark.parametrize("kind", ["point", "line", "polyline"])
def test_shapes_without_area_are_refused(read_one, kind):
    item = read_one(region(name=kind, cx=1, cy=1))
    assert not item.is_supported
    with pytest.raises(UserError, match=rf"'{kind}' of region 0 .* of image a.jpg in .*via.json.*--skip-unsupported"):
        item.outline()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"name": "rect", "x": 1, "y": 2, "width": 30}, "no 'height'"),
        ({"name": "rect", "x": 1, "y": None, "width": 30, "height": 3}, "malformed"),
        ({"name": "circle", "cx": "wide", "cy": 2, "r": 30}, "wide"),
        ({"name": "rect", "x": 10**400, "y": 2, "width": 30, "height": 3}, "malformed"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "2 points, and needs 3"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "3 x and 2 y"),
        ({"name": "circle", "cx": float("nan"), "cy": 2, "r": 30}, "not finite"),
        ({"name": "rect", "x": 10**400, "y": 2, "width": 30, "height": 3}, "too large"),
    ],
)
def test_malformed_shapes(read_one, shape, reason):
    with pytest.raises(UserError, match=rf"of region 0 .* of image a\.jpg .*{reason}"):
        read_one(region(**shape)).outline()


@pytest.mark.parametrize(
    ("value", "category"),
    [("cat", "cat"), (" cat ", "cat"), (7, "7"), ({"cat": True, "dog": False}, "cat"), ({"cat": False}, ""), ("", "")],
    ids=str,
)
def test_categories(read_one, value, category):
    """Text and dropdown lists are stored as text, checkboxes as a dict."""
    assert read_one(region({"name": value}, name="rect")).category("name") == category


def test_no_category(read_one):
    assert read_one(region({}, name="rect")).category("name") == ""
    assert read_one(region({"name": None}, name="rect")).category("name") == ""


def test_two_ticks_are_refused(read_one):
    item = read_one(region({"name": {"cat": True, "dog": True}}, name="rect"))
    with pytest.raises(UserError, match=r"'name' of region 0 .* cat, dog"):
        item.category("name")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,size\na.jpg,5", r"via\.json is not valid JSON .*not CSV"),
        ("[]", "holds a list"),
        ({}, "has no images"),
        ({"_via_img_metadata": {}}, "has no images"),
        ({"images": [], "annotations": [], "categories": []}, "is not a VIA file.*COCO's format"),
        ({"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}, "VIA 3"),
        ({"a": 1}, "is not a VIA file, since"),
        ({"a": entry(RECT), "b": entry()}, "lists image a.jpg twice, with 1 and 0 regions"),
        ({"a": entry({"region_attributes": {}})}, "no 'shape_attributes' in region 0 .* of image a.jpg"),
    ],
)
def test_other_files(read, content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        read_via(str(tmp_path / "nowhere.json"))
