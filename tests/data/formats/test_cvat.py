"""CVAT for images 1.1 by hand."""

import pytest

from detr_d2.utils.errors import UserError

META = "<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>"


def xml(shapes="", name="a.png", meta=META, extra='width="60" height="40"'):
    return (
        f'<annotations><version>1.1</version>{meta}<image id="0" name="{name}" {extra}>{shapes}</image></annotations>'
    )


BOX = '<box label="cat" occluded="0" xtl="1.5" ytl="2" xbr="30" ybr="40"><attribute name="a">b</attribute></box>'


def test_boxes_and_polygons(write, convert, folder):
    polygon = '<polygon label="dog" points="1.00,2.00;9.00,2.00;9.00,8.00"/>'
    file = write("annotations.xml", xml(BOX + polygon))
    for path in (file, folder):
        result = convert(path)
        assert result.objects() == {"a.png": [("cat", [1.5, 2, 28.5, 38]), ("dog", [1, 2, 8, 6], [[1, 2, 9, 2, 9, 8]])]}
        assert [x["name"] for x in result.coco["categories"]] == ["dog", "cat"]


def test_subsets_are_splits(write, convert, folder):
    (folder / "images" / "Train").mkdir()
    (folder / "images" / "a.png").rename(folder / "images" / "Train" / "a.png")
    result = convert(write("annotations.xml", xml(BOX, extra='subset="Train"')))
    assert result.objects().keys() == {"a.png"}
    assert result.dataset.splits() == {"train": 1}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<box label="cat" xtl="1" ytl="2" xbr="3" ybr="4" rotation="30.5"/>', "are rotated boxes"),
        ('<ellipse label="cat" cx="1" cy="2" rx="3" ry="4"/>', "are ellipses"),
        ('<points label="cat" points="1,2"/>', "enclose nothing"),
        ('<polyline label="cat" points="1,2;3,4"/>', "enclose nothing"),
        ('<mask label="cat" rle="1, 2" left="1" top="1" width="1" height="3"/>', "are masks of pixels"),
        ('<tag label="cat"/>', "are tags of whole images"),
        ('<blob label="cat"/>', "are of an unknown kind, <blob>"),
        ('<box xtl="1" ytl="2" xbr="3" ybr="4"/>', "have no label"),
    ],
)
def test_other_shapes_are_dropped(write, convert, shape, reason):
    result = convert(write("annotations.xml", xml(BOX + shape + shape)))
    assert len(result.coco["annotations"]) == 1
    (note,) = result.notes
    assert note.startswith("2 shapes were dropped, since they " + reason)
    assert "E.g. shape 1 (counted from 0) of image a.png in " in note


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml('<box label="cat" xtl="1" ytl="2" xbr="3"/>'), "The box of shape 0 .* of image a.png .* malformed"),
        (xml('<box label="cat" xtl="1" ytl="2" xbr="3" ybr="x"/>'), "The box of shape 0 .* malformed .*'x'"),
        (xml('<polygon label="cat" points="1,2;3,4"/>'), "polygon of shape 0 .* 3 or more points"),
        (xml('<polygon label="cat" points="1,2;3,4;5"/>'), "polygon of shape 0 .* 2 numbers are expected"),
        (xml('<polygon label="cat"/>'), "polygon of shape 0"),
        (xml(BOX, extra='width="90" height="40"'), "another size, e.g. a.png is 60 x 40 .* says 90 x 40"),
        (xml(BOX, extra='width="wide" height="40"'), "The size of image a.png .* malformed"),
        (xml(BOX, name=""), r"Image 0 \(counted from 0\) in .* has no name"),
        (xml(), "No image of .* has an object"),
        ("<annotations><track/></annotations>", "tracks of a video: .*CVAT for images 1.1"),
        ("<annotations/>", "no <image> in <annotations>: "),
    ],
)
def test_malformed_files(write, convert, content, message):
    with pytest.raises(UserError, match=message):
        convert(write("annotations.xml", content))
