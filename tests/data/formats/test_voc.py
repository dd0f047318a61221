"""Pascal VOC by hand: pixel conventions, splits, what is dropped, and what is an error."""

import pytest

from detr_d2.utils.errors import UserError


def xml(*objects, name="a.png", width=60, height=40, database="Unknown", extra=""):
    return (
        f"<annotation><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{extra}"
        f"{''.join(objects)}</annotation>"
    )


def item(*box, name="cat", extra=""):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def test_boxes_are_read_as_written(write, convert):
    file = write("voc/a.xml", xml(item(1, 2, 30, 40)))
    assert convert(file.parent).objects() == {"a.png": [("cat", [1, 2, 29, 38])]}


def test_files_of_the_challenges_count_from_1(write, convert):
    """A box from the first to the last pixel is the image."""
    result = convert(write("voc/a.xml", xml(item(1, 1, 60, 40), database="The VOC2007 Database")).parent)
    assert result.objects() == {"a.png": [("cat", [0, 0, 60, 40])]}
    assert result.notes[0].startswith("1 files are of the VOC challenges")


@pytest.mark.parametrize("root", ["VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_layout_of_the_challenges(write, convert, folder, root):
    year = folder / "VOCdevkit" / "VOC2007"
    for stem in "ab":
        write(f"VOCdevkit/VOC2007/Annotations/{stem}.xml", xml(item(1, 2, 3, 4, name=stem), name=f"{stem}.png"))
    (folder / "images").rename(year / "JPEGImages")
    write("VOCdevkit/VOC2007/ImageSets/Main/train.txt", "a\n")
    write("VOCdevkit/VOC2007/ImageSets/Main/val.txt", "b\n")
    # Of one class: not a split.
    write("VOCdevkit/VOC2007/ImageSets/Main/a_train.txt", "a 1\nb -1\n")
    result = convert(folder / root, split="val")
    assert result.objects() == {"b.png": [("b", [1, 2, 2, 2])]}
    assert result.dataset.splits() == {"train": 1, "val": 1}


def test_the_file_may_have_another_ending_than_annotated(write, convert):
    assert convert(write("voc/b.xml", xml(item(1, 2, 3, 4), name="other.jpg")).parent).objects().keys() == {"b.png"}


def test_polygons_and_parts(write, convert):
    """Parts of an object, as heads of persons, are no objects."""
    points = "<x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>9</x3><y3>8</y3>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    objects = item(1, 2, 9, 8, extra=f"<polygon>{points}</polygon>") + item(3, 4, 5, 6, extra=part)
    assert convert(write("voc/a.xml", xml(objects)).parent).objects()["a.png"] == [
        ("cat", [1, 2, 8, 6], [[1, 2, 9, 2, 9, 8]]),
        ("cat", [3, 4, 2, 2]),
    ]


def test_what_is_dropped_or_doubtful_is_noted(write, convert):
    rotated = "<object><name>cat</name><robndbox><cx>1</cx></robndbox></object>"
    objects = [
        item(1, 2, 3, 4, extra="<difficult>1</difficult>"),
        rotated,
        item(5, 5, 5, 9),
        item(9, 9, 5, 5),
        item(1, 1, 3, 4, name=""),
        item(50, 30, 70, 50),
    ]
    result = convert(write("voc/a.xml", xml(*objects, extra="<segmented>1</segmented>")).parent)
    assert [x[1] for x in result.objects()["a.png"]] == [[1, 2, 2, 2], [50, 30, 10, 10]]
    for start in (
        "1 images have masks as PNGs",
        "1 objects are marked as difficult. They are used like the others. E.g. object 0 ",
        "1 objects were dropped, since their boxes are rotated (<robndbox>). E.g. object 1 ",
        "2 objects have no area inside their image and were dropped. E.g. object 2 ",
        "1 objects were dropped, since they have no class (<name>). E.g. object 4 ",
        "1 objects extend beyond their image and were clipped. E.g. object 5 ",
    ):
        assert [x for x in result.notes if x.startswith(start) and "a.xml" in x]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(item(1, 2, "x", 4)), "<bndbox> of object 0 .*a.xml is malformed .*'x'"),
        (xml(item(1, 2, "", 4)), "<bndbox> of object 0 .*is malformed"),
        (xml(item(1, 2, "nan", 4)), "<bndbox> of object 0 .*not finite"),
        (xml("<object><name>cat</name></object>"), "object 0 .*a.xml has no <bndbox>"),
        (xml(item(1, 2, 3, 4, extra="<polygon><x1>1</x1></polygon>")), "<polygon> of object 0 .* has 1 numbers"),
        (
            xml(item(1, 2, 3, 4), width=80),
            "1 of 1 images have another size, .* is 60 x 40 .*a.xml says 80 x 40",
        ),
        (xml(item(1, 2, 3, 4), width=40, height=60), "sides are swapped.*EXIF"),
        (xml(item(1, 2, 3, 4), width="wide"), "<size> of .*a.xml is malformed"),
        (xml(), "No image of .* has an object"),
        (xml(item(1, 2, 3, 4))[:-20], "a.xml is not valid XML"),
        ("", "a.xml is not valid XML"),
        ("<annotation>" + "<a>" * 200_000, "nested over 100"),
        (BOMB + "<annotation>&b;</annotation>", "document type declaration"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "a.xml is not valid XML"),
        ("<html/>", "known formats"),
    ],
)
def test_malformed_files(write, convert, content, message):
    file = write("voc/a.xml", content)
    with pytest.raises(UserError, match=message):
        convert(file.parent)


def test_unlike_files_of_one_folder(write, convert):
    write("voc/a.xml", xml(item(1, 2, 3, 4)))
    with pytest.raises(UserError, match=r"b\.xml has <annotations> where"):
        convert(write("voc/b.xml", "<annotations/>").parent)


def test_a_missing_image_and_one_annotated_twice(write, convert):
    write("voc/a.xml", xml(item(1, 2, 3, 4)))
    file = write("voc/c.xml", xml(item(1, 2, 3, 4), name="a.png"))
    with pytest.raises(UserError, match=r"images/a\.png is annotated twice, in .*a\.xml and .*c\.xml"):
        convert(file.parent)
    file.write_text(xml(item(1, 2, 3, 4), name="c.png"))
    with pytest.raises(UserError, match=r"1 of 2 images do not exist, e\.g\. c\.png of .*c\.xml.*--images"):
        convert(file.parent)
