"""LabelMe by hand."""

import pytest

from detr_d2.utils.errors import UserError


def shape(points, kind="polygon", label="cat", **others):
    return {"label": label, "points": points, "shape_type": kind, **others}


def content(*shapes, **changes):
    size = {"imageHeight": 40, "imageWidth": 60}
    return {
        "version": "5.4",
        "shapes": list(shapes),
        "imagePath": "../images/a.png",
        "imageData": None,
        **size,
        **changes,
    }


TRIANGLE = [[1, 2], [9, 2], [9, 8]]


def test_rectangles_and_polygons(write, convert):
    """Of a rectangle any two opposite corners are given."""
    rectangle = shape([[30, 2], [10, 22.5]], "rectangle", "dog")
    file = write("labels/a.json", content(shape(TRIANGLE), rectangle))
    expected = {"a.png": [("cat", [1, 2, 8, 6], [[1, 2, 9, 2, 9, 8]]), ("dog", [10, 2, 20, 20.5])]}
    assert convert(file.parent).objects() == convert(file).objects() == expected


def test_pieces_of_one_group_are_one_object(write, convert):
    moved = [[x + 20, y] for x, y in TRIANGLE]
    pieces = [shape(TRIANGLE, group_id=1), shape(moved, group_id=1), shape(moved, label="dog", group_id=1)]
    result = convert(write("labels/a.json", content(*pieces, shape(TRIANGLE), shape(TRIANGLE))))
    boxes = [x[:2] for x in result.objects()["a.png"]]
    assert boxes == [("cat", [1, 2, 28, 6]), ("dog", [21, 2, 8, 6]), *[("cat", [1, 2, 8, 6])] * 2]
    assert result.coco["annotations"][0]["area"] == 48


@pytest.mark.parametrize("path", ["..\\images\\a.png", "C:\\Users\\me\\a.png", "/home/me/photos/a.png", "a.png"])
def test_paths_of_other_machines(write, convert, path):
    assert convert(write("labels/x.json", content(shape(TRIANGLE), imagePath=path))).objects().keys() == {"a.png"}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (shape([[1, 2], [3, 4]], "circle"), "are circles"),
        (shape([[1, 2]], "point"), "enclose nothing"),
        (shape(TRIANGLE, "oriented_rectangle"), "are rotated boxes"),
        (shape(TRIANGLE, "mask"), "are masks of pixels"),
        (shape(TRIANGLE, "star"), "are of an unknown kind, 'star'"),
        (shape(TRIANGLE, ["star"]), "are of an unknown kind, "),
        (shape(TRIANGLE, label=" "), "have no label"),
        (shape(TRIANGLE, label=None), "have no label"),
    ],
)
def test_other_shapes_are_dropped(write, convert, item, reason):
    result = convert(write("labels/a.json", content(shape(TRIANGLE), item)))
    assert len(result.coco["annotations"]) == 1
    assert result.notes[0].startswith("1 shapes were dropped, since they " + reason)
    assert "E.g. shape 1 (counted from 0) in " in result.notes[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (content(shape([[1, 2], [3, 4]])), "The polygon of shape 0 .*a.json .* 3 or more points"),
        (content(shape([[1, 2], [3, 4], 5])), "The polygon of shape 0 .* 2 numbers are expected"),
        (content(shape([[1, 2], [3, 4], [None, 5]])), "The polygon of shape 0 .* malformed"),
        (content(shape([[1, 2], [3, 4], [1e999, 5]])), "The polygon of shape 0 .* not finite"),
        (content(shape(None)), "The polygon of shape 0"),
        (content(shape([[1, 2]], "rectangle")), "The rectangle of shape 0 .* 4 numbers"),
        (content(shape(7, "rectangle")), "The rectangle of shape 0"),
        (content(3), "no object at shape 0 .*a.json but 3"),
        (content(shape(TRIANGLE), imageWidth=61), "another size, e.g. .*a.png is 60 x 40 .*a.json says 61 x 40"),
        (content(shape(TRIANGLE), imageWidth="x"), "The image's size in .*a.json is malformed"),
        (content(shape(TRIANGLE), imagePath=3), "a.json has no list 'shapes' with an 'imagePath'"),
        (content(shape(TRIANGLE), shapes={}), "a.json has no list 'shapes'"),
        (content(shape(TRIANGLE), imagePath="c.png"), "1 of 1 images do not exist, e.g. .*c.png of .*a.json"),
        (content(shape(TRIANGLE), imagePath="nul\0byte.png"), "1 of 1 images do not exist"),
        (content(), "No image of .* has an object"),
    ],
)
def test_malformed_files(write, convert, data, message):
    with pytest.raises(UserError, match=message):
        convert(write("labels/a.json", data).parent)
