"""The command ``check`` finds what is planted, and names it."""

import re

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 60, 40


def change(index=0, **values):
    """Plant values in an annotation; ``...`` removes a key."""

    def plant(dataset):
        item = dataset.content["annotations"][index]
        item.update(values)
        for key in [key for key, value in item.items() if value is ...]:
            del item[key]

    return plant


def change_all(**values):
    def plant(dataset):
        for index in range(len(dataset.content["annotations"])):
            change(index, **values)(dataset)

    return plant


def change_image(**values):
    return lambda dataset: dataset.content["images"][1].update(values)


def as_xyxy(dataset):
    for item in dataset.content["annotations"]:
        x, y, w, h = item["bbox"] = [20, 15, 35, 22]
        item["bbox"] = [x, y, x + w, y + h]


def add_image(**values):
    return lambda dataset: dataset.content["images"].append({**dataset.content["images"][0], **values})


def repeat_annotation(dataset):
    dataset.content["annotations"].append({**dataset.content["annotations"][2], "bbox": [1, 1, 5, 5]})


def remove_annotations(dataset):
    dataset.content["annotations"] = []


def truncate_image(dataset):
    path = dataset.images / "2.png"
    path.write_bytes(path.read_bytes()[:500])


def write_image(mode="RGB", size=(WIDTH, HEIGHT), orientation=None):
    """Replace the second image."""

    def plant(dataset):
        exif = Image.Exif()
        if orientation:
            exif[274] = orientation
        is_16_bits = mode == "I;16"
        image = Image.fromarray(np.full(size[::-1], 40000, np.uint16)) if is_16_bits else Image.new(mode, size)
        image.save(dataset.images / "2.png", exif=exif)

    return plant


NAN, INF = float("nan"), float("inf")
ANNOTATION_10 = r"annotation id 10 of image \S*1\.png"
PLANTED = {
    "only crowds": (change_all(iscrowd=1), "error", "no-objects", r"no object to learn from .*6 crowds"),
    "no width": (change(bbox=[5, 6, 0, 10]), "warning", "box-without-area", rf"1 of 6 .*{ANNOTATION_10}"),
    "negative height": (change(bbox=[5, 6, 9, -10]), "warning", "box-without-area", ANNOTATION_10),
    "partly outside": (change(bbox=[50, 6, 20, 10]), "warning", "box-partly-outside", ANNOTATION_10),
    "left of the image": (change(bbox=[-5, 6, 20, 10]), "warning", "box-partly-outside", ANNOTATION_10),
    "fully outside": (change(bbox=[80, 6, 20, 10]), "warning", "box-without-area", rf"{ANNOTATION_10}.*1 outside"),
    "XYXY": (as_xyxy, "warning", "xyxy-as-xywh", r"are they XYXY, but declared XYWH\?"),
    "NaN": (change(bbox=[5, NAN, 20, 10]), "error", "unreadable-annotation", rf"{ANNOTATION_10} is not finite"),
    "inf": (change(bbox=[5, 6, INF, 10]), "error", "unreadable-annotation", rf"{ANNOTATION_10} is not finite"),
    "inf in a polygon": (change(segmentation=[[1, 2, 3, 4, 5, INF]]), "error", "mask-malformed", ANNOTATION_10),
    "category as a string": (
        change(category_id="4"),
        "error",
        "annotation-category-unknown",
        rf"'4' of {ANNOTATION_10}",
    ),
    "unknown category": (change(category_id=5), "error", "annotation-category-unknown", f"5 of {ANNOTATION_10}"),
    "short polygon": (
        change(segmentation=[[1, 2, 3, 4], [5, 6, 25, 6, 25, 16]]),
        "warning",
        "mask-polygon-short",
        ANNOTATION_10,
    ),
    "only short polygons": (
        change(segmentation=[[1, 2, 3, 4]]),
        "warning",
        "mask-without-polygon",
        rf"{ANNOTATION_10}",
    ),
    "flat polygon": (change(segmentation=[5, 6, 25, 6, 25, 16]), "error", "mask-malformed", ANNOTATION_10),
    "truncated image": (truncate_image, "error", "image-unreadable", r"Image \S*2\.png can't be read"),
    "missing image": (lambda d: (d.images / "2.png").unlink(), "error", "image-missing", r"2\.png.*does not exist"),
    "other size": (write_image(size=(30, 20)), "error", "image-size", r"2\.png, which is 30 x 20 .* 60 x 40"),
    "sides swapped": (write_image(size=(HEIGHT, WIDTH)), "error", "image-size", r"2\.png, which is 40 x 60"),
    "EXIF rotation": (write_image(orientation=6), "error", "exif-rotation", r"2\.png, which is 40 x 60"),
    "no box": (change(bbox=...), "error", "unreadable-annotation", f"'bbox' in {ANNOTATION_10}"),
    "empty box": (change(bbox=[]), "error", "unreadable-annotation", ANNOTATION_10),
    "three numbers": (change(bbox=[1, 2, 3]), "error", "unreadable-annotation", ANNOTATION_10),
    "box of fractions": (change_all(bbox=[0.1, 0.2, 0.5, 0.3]), "warning", "box-in-fractions", "YOLO"),
    "unknown image": (change(image_id=7), "warning", "annotation-image-unknown", "id 10 with image_id 7"),
    "image id as a string": (change(image_id="1"), "warning", "annotation-image-unknown", "image_id '1'"),
    "no id": (change(id=...), "error", "annotation-malformed", "number 0"),
    "annotation id twice": (repeat_annotation, "error", "annotation-id-repeated", r"1 of 7 .*id 12 of image \S*3\.png"),
    "image id twice": (add_image(file_name="3.png"), "error", "image-id-repeated", r"1, of 3\.png"),
    "image file twice": (add_image(id=8), "warning", "image-file-repeated", r"1\.png"),
    "mixed image ids": (add_image(id="8", file_name="3.png"), "error", "image-ids-mixed", "1, 2, 3"),
    "no width of an image": (change_image(width=None), "error", "image-malformed", "number 1"),
    "category id as a string": (
        lambda d: d.content["categories"].append({"id": "7", "name": "cow"}),
        "error",
        "category-malformed",
        "number 2",
    ),
    "category id twice": (
        lambda d: d.content["categories"].append({"id": 9, "name": "cow"}),
        "error",
        "category-id-repeated",
        "9",
    ),
    "category name twice": (
        lambda d: d.content["categories"].append({"id": 7, "name": "dog"}),
        "warning",
        "category-name-repeated",
        "'dog'",
    ),
    "iscrowd as a string": (
        change(iscrowd="0"),
        "error",
        "annotation-iscrowd-malformed",
        f"'0' of {ANNOTATION_10}",
    ),
    "ignore": (change(ignore=1), "error", "annotation-ignore", ANNOTATION_10),
    "RLE of another size": (
        change(segmentation={"size": [WIDTH, HEIGHT], "counts": [2400]}),
        "warning",
        "mask-size",
        ANNOTATION_10,
    ),
    "no objects": (remove_annotations, "error", "no-objects", "no object to learn from"),
}


# What else is true then.
FOLLOWING = {
    "no width of an image": {"annotation-image-unknown"},
    "mixed image ids": {"image-file-repeated"},
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found_and_named(check, dataset, fault, problems):
    """Nothing else than the planted fault is found, except what follows from it."""
    plant, severity, code, message = PLANTED[fault]
    plant(dataset)
    dataset.save()
    exit_code, report, printed = check(*dataset.arguments())
    assert (severity, code) in problems(report)
    assert {x for _, x in problems(report)} - {code} == FOLLOWING.get(fault, set())
    finding = next(x for x in report["datasets"][0]["findings"] if x["code"] == code)
    assert re.search(message, finding["message"], re.DOTALL), finding["message"]
    assert finding["count"] >= 1
    assert f"[{code}]" in printed
    assert exit_code == (1 if severity == "error" else 0)


def test_a_dataset_without_images_has_no_preview(check, dataset, problems):
    dataset.content["images"] = [3]
    dataset.save()
    exit_code, report, _ = check(*dataset.arguments(), preview=True)
    assert exit_code == 1
    assert {"image-malformed", "no-objects"} <= {code for _, code in problems(report)}


def test_all_errors_are_listed(check, dataset, problems):
    change(0, bbox=[1, 2, 3])(dataset)
    change(1, category_id=77)(dataset)
    change(2, bbox=[1, NAN, 3, 4])(dataset)
    truncate_image(dataset)
    dataset.save()
    exit_code, report, printed = check(*dataset.arguments(), "--num-classes", 91)
    assert exit_code == 1
    codes = {"unreadable-annotation", "annotation-category-unknown", "image-unreadable", "num-classes"}
    assert {code for _, code in problems(report)} == codes
    assert all(f"[{code}]" in printed for code in codes)
    assert "set MODEL.DETR.NUM_CLASSES 2" in re.sub(r"\s+", " ", printed)
    unreadable = next(x for x in report["datasets"][0]["findings"] if x["code"] == "unreadable-annotation")
    assert unreadable["count"] == 2


@pytest.mark.parametrize(
    ("mode", "orientation", "size", "note"),
    [
        ("L", None, (WIDTH, HEIGHT), "image-converted"),
        ("RGBA", None, (WIDTH, HEIGHT), "image-converted"),
        ("I;16", None, (WIDTH, HEIGHT), "image-converted"),
        ("P", None, (WIDTH, HEIGHT), "image-converted"),
        ("RGB", 6, (HEIGHT, WIDTH), "exif-orientation"),
        ("RGB", 3, (WIDTH, HEIGHT), "exif-orientation"),
    ],
)
def test_images_that_are_converted_are_noted(check, dataset, mode, orientation, size, note, problems, notes):
    """None of these is a fault, nor is an image that EXIF data turn upright, annotated upright."""
    write_image(mode, size, orientation)(dataset)
    exit_code, report, _ = check(*dataset.arguments())
    assert exit_code == 0
    assert problems(report) == []
    assert note in notes(report)


def test_everything_wrong_at_once(check, dataset, problems):
    """Whatever stands in the lists, there is a report and no traceback."""
    junk = [None, 3, "x", [], {}, {"id": []}, {"id": 1, "image_id": {}, "category_id": None}]
    for key in ("images", "annotations", "categories"):
        dataset.content[key] += junk
    odd = {"bbox": "abcd", "iscrowd": [], "segmentation": 7, "area": None, "ignore": "x", "category_id": []}
    values = [None, 1.5, "a", [], {}, [None], ["a", 1, 2, 3], {"counts": 1}, [[{}]], True]
    template = dataset.content["annotations"][0]
    dataset.content["annotations"] += [{**template, "id": 100 + i, key: x} for key in odd for i, x in enumerate(values)]
    dataset.save()
    exit_code, report, _ = check(*dataset.arguments(), preview=True)
    assert exit_code == 1
    assert len(problems(report)) > 5


def test_images_of_different_depths(dataset, check, problems):
    """Values of 16 bits are 257 times those of 8 bits, and nothing scales them."""
    gray = np.full((40, 60), 100, np.uint8)
    for number, pixels in ((1, gray), (2, gray), (3, 257 * gray.astype(np.uint16))):
        Image.fromarray(pixels).save(dataset.images / f"{number}.png")
    code, report, printed = check(*dataset.arguments(), "--channels", 1)
    assert code == 0
    assert problems(report) == [("warning", "image-depths")]
    assert 'MODEL.PIXEL_MEAN "[8633.3]"' in " ".join(printed.split())
