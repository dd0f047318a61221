"""Label Studio's JSON export by hand."""

import pytest

from detr_d2.utils.errors import UserError


def result(value, kind="rectanglelabels", **others):
    value = {kind: ["cat"], **value}
    size = {"original_width": 60, "original_height": 40, "image_rotation": 0}
    return {"type": kind, "value": value, **size, **others}


def task(*results, image="/data/upload/1/1a2b3c4d-a.png", **others):
    return {"id": 1, "data": {"text": "a cat", "image": image}, "annotations": [{"result": list(results)}], **others}


BOX = {"x": 10, "y": 20, "width": 50, "height": 25, "rotation": 0}
OBJECT = ("cat", [6, 8, 30, 10])


def test_boxes_and_polygons_in_percent(write, convert):
    polygon = result({"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["dog"]}, "polygonlabels")
    file = write("project.json", [task(result(BOX), polygon), task(image="b.png")])
    expected = {"a.png": [OBJECT, ("dog", [6, 4, 24, 16], [[6, 4, 30, 4, 30, 20]])], "b.png": []}
    assert convert(file).objects() == convert(file.parent).objects() == expected


@pytest.mark.parametrize(
    "image",
    ["a.png", "/data/local-files/?d=photos/a.png", "s3://bucket/photos/a.png", "https://host/my%20photos/a.png?x=1"],
)
def test_addresses_of_images(write, convert, image):
    assert convert(write("project.json", [task(result(BOX), image=image)])).objects() == {"a.png": [OBJECT]}


def test_one_annotation_per_task(write, convert):
    """One that was cancelled does not count; the ground truth is preferred."""
    annotations = [
        {"result": [], "was_cancelled": True},
        {"result": [result({**BOX, "x": 0})]},
        {"result": [result(BOX)], "ground_truth": True},
    ]
    converted = convert(write("project.json", [task(annotations=annotations)]))
    assert converted.objects() == {"a.png": [OBJECT]}
    assert converted.notes[0].startswith("1 tasks have several annotations")
    old = {"data": {"image": "a.png"}, "completions": [{"result": [result(BOX)]}]}
    assert convert(write("project.json", [old])).objects() == {"a.png": [OBJECT]}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (result({**BOX, "rotation": 30}), "are rotated boxes or of rotated images"),
        (result(BOX, image_rotation=90), "are rotated boxes or of rotated images"),
        (result({}, "ellipselabels"), "are ellipses"),
        (result({}, "keypointlabels"), "are keypoints"),
        (result({}, "brushlabels"), "are masks of pixels"),
        (result({}, "choices"), "are of type 'choices', without a box and a label"),
        (result({**BOX, "rectanglelabels": []}), "have no label or several"),
        (result({**BOX, "rectanglelabels": ["cat", "dog"]}), "have no label or several"),
        (result({**BOX, "rectanglelabels": [3]}), "have no label or several"),
    ],
)
def test_other_results_are_dropped(write, convert, item, reason):
    converted = convert(write("project.json", [task(result(BOX), item)]))
    assert converted.objects() == {"a.png": [OBJECT]}
    assert converted.notes[0].startswith("1 results were dropped, since they " + reason)
    assert "E.g. result 1 (counted from 0) of task 0 (counted from 0) in " in converted.notes[0]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([task(result({**BOX, "x": "wide"}))], "The box of result 0 .* of task 0 .*project.json is malformed"),
        ([task(result({**BOX, "x": None}))], "The box of result 0 .* malformed"),
        ([task(result({"points": [[1, 2]]}, "polygonlabels"))], "The polygon of result 0 .* 3 or more points"),
        ([task({**result(BOX), "value": 3})], "The 'value' of result 0 .* is 3"),
        ([task(result(BOX, original_width=61))], "another size, e.g. .*a.png is 60 x 40 .* says 61 x 40"),
        ([task(result(BOX, original_width="x"))], "The image's size in task 0 .* malformed"),
        ([task(3)], "The 'result' of task 0"),
        ([task(annotations=3)], "The 'annotations' of task 0 .* are 3"),
        ([task(annotations=[3])], "The 'annotations' of task 0"),
        ([task(result(BOX)), 3], "no image among the 'data' of task 1"),
        ([task(result(BOX), data={"text": "a cat"})], "no image among the 'data' of task 0"),
        ([task(result(BOX), data=[])], "no image among the 'data' of task 0"),
        ([task(result(BOX), image="c.png")], "1 of 1 images do not exist, e.g. c.png of task 0"),
        ([task()], "No image of .* has an object"),
    ],
)
def test_malformed_exports(write, convert, items, message):
    with pytest.raises(UserError, match=message):
        convert(write("project.json", items))


def test_the_short_export_is_explained(write, convert):
    file = write("project.json", [{"image": "a.png", "label": []}])
    with pytest.raises(UserError, match="export as JSON, not JSON-MIN"):
        convert(file, "label-studio")
