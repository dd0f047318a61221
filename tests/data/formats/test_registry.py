"""Recognition of formats, COCO's own, and what is common to all: images, sizes, classes."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detr_d2.utils.errors import UserError
from tests.data.formats.test_labelme import TRIANGLE, content, shape

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def coco(*annotations, name="a.png", **changes):
    images = [{"id": 9, "file_name": name, "width": 60, "height": 40}]
    rows = [{"id": i, "image_id": 9, "category_id": 3, **x} for i, x in enumerate(annotations)]
    return {"images": images, "annotations": rows, "categories": CATEGORIES, **changes}


BOX = {"bbox": [1, 2, 30, 20]}


def test_coco_keeps_masks_crowds_and_the_order_of_classes(write, convert):
    pixels = np.zeros((40, 60), np.uint8, order="F")
    pixels[2:5, 3:9] = 1
    rle = coco_mask.encode(pixels)
    rle = {"size": [40, 60], "counts": rle["counts"].decode()}
    crowd = {"bbox": [3, 2, 6, 3], "segmentation": rle, "iscrowd": 1}
    result = convert(write("coco.json", coco(BOX, {**crowd, "category_id": 7})))
    assert [x["name"] for x in result.coco["categories"]] == ["cat", "dog"]
    assert result.objects()["a.png"] == [("cat", [1, 2, 30, 20]), ("dog", [3, 2, 6, 3], rle)]
    assert [(x["iscrowd"], x["area"]) for x in result.coco["annotations"]] == [(0, 600), (1, 18)]


def test_the_folder_of_coco(real_data, convert):
    result = convert(real_data / "coco", split="train")
    assert result.dataset.splits() == {"train": 50, "val": 50}
    assert len(result.coco["images"]) == 50
    assert result.root == str((real_data / "coco" / "train2017").resolve()) or result.root.endswith("train2017")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (coco({"bbox": [1, 2, 3]}), "The 'bbox' of annotation 0 .*coco.json .* 4 numbers"),
        (coco({**BOX, "category_id": 8}), "The 'category_id' of annotation 0 .* is 8"),
        (coco({**BOX, "segmentation": [["x"] * 6]}), "A polygon of annotation 0 .* malformed"),
        (coco({**BOX, "segmentation": {"size": [40, 60], "counts": [5]}}), "RLE of annotation 0"),
        (coco(BOX, categories=[{"id": "1", "name": "x"}]), "category .* lacks an integer 'id'"),
        (coco(BOX, images=[{"id": 9, "file_name": 3, "width": 60, "height": 40}]), "has the 'file_name' 3"),
        (
            coco(BOX, images=[{"id": 9, "file_name": "a.png", "width": "x", "height": 40}]),
            "height and width of image 9",
        ),
        (coco(BOX, images=[]), "has no images"),
        (coco(BOX, annotations=[3]), "none of the known formats"),
    ],
)
def test_malformed_coco(write, convert, data, message):
    with pytest.raises(UserError, match=message):
        convert(write("coco.json", data))


def test_keypoints_are_noted(write, convert):
    result = convert(write("coco.json", coco({**BOX, "keypoints": [1, 2, 2]})))
    assert len(result.coco["annotations"]) == 1
    assert result.notes[0].startswith("1 annotations have keypoints")


def test_annotations_of_unlisted_images_are_noted(write, convert):
    result = convert(write("coco.json", coco(BOX, {**BOX, "image_id": 5}, {**BOX, "image_id": [9]})))
    assert result.notes[0].startswith(
        "2 annotations were dropped, since their images are not listed. E.g. annotation 1"
    )


def test_what_was_looked_for_is_listed(write, convert, folder):
    with pytest.raises(UserError, match="none of the known formats") as error:
        convert(folder)
    for word in ("Annotations/", "data.yaml", "annotations.xml", "'imagePath'", "'filename'", "'annotations'"):
        assert word in str(error.value)
    with pytest.raises(UserError, match="none of the known formats"):
        convert(write("other.json", "[1, 2]"))
    with pytest.raises(UserError, match="is not valid JSON"):
        convert(write("broken.json", '{"images": ['))
    with pytest.raises(UserError, match="is an archive: unpack it"):
        convert(write("export.zip", ""))
    with pytest.raises(UserError, match="nowhere does not exist"):
        convert(folder / "nowhere")


def test_several_formats_are_listed_and_one_is_chosen(write, convert, folder):
    write("coco.json", coco(BOX))
    write("data.yaml", "train: images\nnames: [cat]")
    write("labels/a.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(UserError, match=r"several formats: .*--format:\n  coco +.*coco\.json.*\n  yolo +.*data\.yaml"):
        convert(folder)
    assert convert(folder, "yolo").objects()["a.png"] == [("cat", [15, 10, 30, 20])]
    with pytest.raises(UserError, match=r"no format yolov8\. Did you mean yolo\?"):
        convert(folder, "yolov8")
    with pytest.raises(UserError, match=r"has no \.xml files of Pascal VOC"):
        convert(folder, "voc")


def test_requested_classes_select_and_order(write, convert):
    file = write("labels/a.json", content(shape(TRIANGLE), shape(TRIANGLE, label="dog"), shape(TRIANGLE, label="cow")))
    result = convert(file, classes=["dog", "bird", "cat"])
    assert [x["category_id"] for x in result.coco["annotations"]] == [3, 1]
    assert any("1 objects are of classes that were not requested" in x for x in result.notes)
    assert any("1 of the requested classes have no object. E.g. 'bird'" in x for x in result.notes)
    with pytest.raises(UserError, match="No object is of the classes bird; there are: cat, cow, dog"):
        convert(file, classes=["bird"])
    with pytest.raises(UserError, match="not all different"):
        convert(file, classes=["cat", "cat"])


def test_images_are_found_below_their_folder(write, convert, folder):
    """By the name alone if only one file has it."""
    deep = folder / "photos" / "2024" / "may"
    deep.mkdir(parents=True)
    (folder / "images" / "a.png").rename(deep / "a.png")
    file = write("labels/a.json", content(shape(TRIANGLE)))
    result = convert(file, images=folder / "photos")
    assert result.coco["images"][0]["file_name"] == "2024/may/a.png"
    (deep.parent / "june").mkdir()
    (deep.parent / "june" / "a.png").write_bytes((deep / "a.png").read_bytes())
    with pytest.raises(UserError, match="1 of 1 images do not exist"):
        convert(file, images=folder / "photos")
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        convert(file, images=folder / "nowhere")


@pytest.mark.parametrize(("name", "turned"), [("a.jpg", 6), ("a.jpg", 3), ("a.png", 8), ("a.webp", 1)])
def test_sizes_are_upright(write, convert, folder, name, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.new("RGB", (60, 40)).save(folder / "images" / name, exif=exif)
    size = {"imageWidth": 40, "imageHeight": 60} if turned in (6, 8) else {}
    result = convert(write("labels/a.json", content(shape(TRIANGLE), imagePath=name, **size)))
    assert (result.coco["images"][0]["width"] == 40) == (turned in (6, 8))


@pytest.mark.parametrize(("data", "message"), [(b"no image", "can't be read"), (b"", "can't be read")])
def test_damaged_images(write, convert, folder, data, message):
    (folder / "images" / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=rf"Image .*a\.png {message}"):
        convert(write("labels/a.json", content(shape(TRIANGLE))))
