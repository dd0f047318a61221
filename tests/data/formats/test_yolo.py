"""YOLO by hand: layouts, boxes, polygons, class names, and what is an error."""

import pytest

from detr_d2.utils.errors import UserError

BOX = "1 0.5 0.5 0.5 0.25\n"
POLYGON = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
OBJECTS = {"a.png": [("dog", [15, 15, 30, 10]), ("cat", [6, 4, 24, 16], [[6, 4, 30, 4, 30, 20]])], "b.png": []}
YAML = "path: .\ntrain: images\nnames: [cat, dog]\n"


@pytest.fixture
def labels(write):
    """Write the labels of a.png; b.png shows nothing."""
    return write("labels/a.txt", BOX + "\n" + POLYGON)


def test_boxes_and_polygons(labels, write, convert, folder):
    write("data.yaml", YAML)
    for path in (folder, folder / "data.yaml"):
        result = convert(path)
        assert result.objects() == OBJECTS
        assert [x["name"] for x in result.coco["categories"]] == ["cat", "dog"]
    # The shoelace formula of the triangle.
    assert [x["area"] for x in result.coco["annotations"]] == [300, 192]


@pytest.mark.parametrize(
    "content",
    [
        "train: images\nval: nowhere\nnames: {0: cat, 1: dog}",
        "path: ../datasets/not/here\ntrain: [images]\nnames: [cat, dog]\nnc: 2",
        "train: ../images\nval: ../valid/images\nnames: ['cat', 'dog']",
        "train: list.txt\nnames: [cat, dog]",
        "train: [list.txt]\nval: list.txt\nnames: [cat, dog]",
    ],
)
def test_forms_of_data_yaml(labels, write, convert, folder, content):
    write("list.txt", "./images/a.png\n\nimages/b.png\n")
    write("data.yaml", content)
    result = convert(folder, split="train")
    assert result.objects() == OBJECTS
    has_missing_split = any(x in content for x in ("nowhere", "valid"))
    assert any("left out, since they do not exist. E.g. val: " in x for x in result.notes) == has_missing_split


def test_splits_of_folders(write, convert, folder):
    for split, name in (("train", "a.png"), ("val", "b.png")):
        (folder / "images" / split).mkdir()
        (folder / "images" / name).rename(folder / "images" / split / name)
        write(f"labels/{split}/{name[0]}.txt", BOX)
    write("classes.txt", "cat\ndog\n")
    assert convert(folder).dataset.splits() == {"train": 1, "val": 1}
    assert convert(folder, split="val").objects() == {"b.png": [("dog", [15, 15, 30, 10])]}
    write("data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]")
    assert convert(folder, split="val").objects() == {"b.png": [("dog", [15, 15, 30, 10])]}


def test_labels_beside_the_images(write, convert, folder):
    """As CVAT exports YOLO 1.1."""
    (folder / "images").rename(folder / "obj_train_data")
    write("obj_train_data/a.txt", BOX)
    write("obj.names", "cat\ndog\n")
    write("train.txt", "data/obj_train_data/a.png\n")
    assert convert(folder).objects() == {"a.png": [("dog", [15, 15, 30, 10])], "b.png": []}


def test_names_on_the_command_line_and_stray_labels(labels, write, convert):
    write("labels/c.txt", BOX)
    result = convert(labels.parent, classes=["cat", "dog"])
    assert result.objects() == OBJECTS
    assert any(x.startswith("1 label files were left out") and "c.txt" in x for x in result.notes)


def test_keypoints_are_left_out(write, convert, folder):
    write("data.yaml", YAML + "kpt_shape: [2, 3]\n")
    write("labels/a.txt", BOX.strip() + " 0.1 0.1 2 0.2 0.2 2\n")
    result = convert(folder)
    assert result.objects()["a.png"] == [("dog", [15, 15, 30, 10])]
    assert any(x.startswith("1 objects have keypoints") for x in result.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.5", "line 2 of .*a.txt has 3 numbers"),
        ("1 0.5 0.5 0.5 0.5 0.9", "line 2 of .*a.txt has 5 numbers .* score"),
        ("1 0.1 0.1 0.5 0.1 0.5 0.5 0.7", "line 2 of .*a.txt has 7 numbers"),
        ("2 0.5 0.5 0.5 0.5", "class of line 2 of .*a.txt is '2', where a number from 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class of line 2"),
        ("1.5 0.5 0.5 0.5 0.5", "class of line 2"),
        ("dog 0.5 0.5 0.5 0.5", "class of line 2"),
        ("1e400 0.5 0.5 0.5 0.5", "class of line 2"),
        ("1 0.5 x 0.5 0.5", "line 2 of .*a.txt is malformed"),
        ("1 0.5 nan 0.5 0.5", "line 2 of .*a.txt has numbers that are not finite"),
        ("1 30 20 15 10", "line 2 of .*a.txt are no fractions"),
    ],
)
def test_malformed_lines(write, convert, folder, line, message):
    write("data.yaml", YAML)
    write("labels/a.txt", BOX + line)
    with pytest.raises(UserError, match=message):
        convert(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: images\nnames: {1: cat, 2: dog}", "keys of 'names' in .* are 1, 2: number the classes from 0"),
        ("train: images\nnames: 3", "'names' in .*data.yaml is 3"),
        ("train: images\nnames: [[cat]]", "values that are no text"),
        ("train: nowhere\nnames: [cat]", "names no images that exist"),
        ("train: 3\nnames: [cat]", "names no images that exist"),
        ("train: images\nnames: [cat, !!python/object:os.system dog]", "can't be read as YAML"),
        ("a: &a [x, x]\ntrain: images\nnames: [*a, *a]", "can't be read as YAML: it has an alias"),
        ("train: images\nnames: [cat", "can't be read as YAML"),
        ("names: " + "[" * 1000, "can't be read as YAML|nested too deeply"),
    ],
)
def test_malformed_data_yaml(labels, write, convert, folder, content, message):
    write("data.yaml", content)
    with pytest.raises(UserError, match=message):
        convert(folder)


def test_missing_pieces(write, convert, folder, real_data):
    write("labels/a.txt", BOX)
    with pytest.raises(UserError, match=r"no names for the class numbers .* --classes cat,dog"):
        convert(folder)
    with pytest.raises(UserError, match=r"has no images for the labels .*--images"):
        convert(folder, classes=["cat", "dog"], images=folder / "labels")
    with pytest.raises(UserError, match=r"No image of .*data.yaml has labels.*labels/boxes, .*labels/polygons"):
        convert(real_data / "coco128")


def test_versions_of_labels(write, convert, folder):
    for version in ("boxes", "polygons"):
        write(f"labels/{version}/a.txt", BOX)
    with pytest.raises(UserError, match=r"several folders.*labels/boxes, .*labels/polygons"):
        convert(folder, classes=["cat", "dog"])
    assert convert(folder / "labels" / "boxes", classes=["cat", "dog"]).objects()["a.png"] == OBJECTS["a.png"][:1]
