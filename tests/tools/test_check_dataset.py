"""tools/check_dataset.py finds what is planted, names it, and is silent on data that are in order."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from matplotlib.figure import Figure
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_dataset.py"
WIDTH, HEIGHT = 60, 40


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("check_dataset_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Dataset:
    """A good dataset of three images and six objects, to plant faults in."""

    def __init__(self, folder):
        self.folder = folder
        self.json_file = folder / "train.json"
        self.images = folder / "images"
        self.images.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for number in (1, 2, 3):
            Image.fromarray(pixels).save(self.images / f"{number}.png")
        common = {"iscrowd": 0, "area": 200.0, "segmentation": [[5, 6, 25, 6, 25, 16]]}
        self.content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)],
            "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [
                {
                    "id": 10 + i,
                    "image_id": 1 + i % 3,
                    "category_id": (4, 9)[i % 2],
                    "bbox": [5 + i, 6, 20, 10],
                    **common,
                }
                for i in range(6)
            ],
        }
        self.save()

    def save(self):
        self.json_file.write_text(json.dumps(self.content))

    def arguments(self):
        return ["--json", str(self.json_file), "--images", str(self.images)]


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path / "data")


@pytest.fixture
def check(tool, tmp_path, capsys, monkeypatch):
    """A function that runs the tool; returns the exit code, the report as a dict, and what was printed."""

    def run(*arguments, draw=False):
        if not draw:
            monkeypatch.setattr(tool, "draw_preview", lambda *_: Figure((1, 1)))
        output = tmp_path / "checked"
        code = tool.main([*map(str, arguments), "--output", str(output)])
        printed = capsys.readouterr()
        path = output / "report.json"
        return code, json.loads(path.read_text()) if path.exists() else None, printed.out + printed.err

    return run


def problems(report):
    """(severity, code) of all errors and warnings."""
    found = [*report["between_datasets"], *(x for part in report["datasets"] for x in part["findings"])]
    return [(x["severity"], x["code"]) for x in found if x["severity"] != "note"]


def notes(report):
    return [x["code"] for part in report["datasets"] for x in part["findings"] if x["severity"] == "note"]


def change(index=0, **values):
    """Plants values in an annotation; ``...`` removes a key."""

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
    """Replaces the second image."""

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
    "C5 only crowds": (change_all(iscrowd=1), "error", "no-objects", r"no object to learn from .*6 crowds"),
    "C9 no width": (change(bbox=[5, 6, 0, 10]), "warning", "box-without-area", rf"1 of 6 .*{ANNOTATION_10}"),
    "C9 negative height": (change(bbox=[5, 6, 9, -10]), "warning", "box-without-area", ANNOTATION_10),
    "C10 partly outside": (change(bbox=[50, 6, 20, 10]), "warning", "box-partly-outside", ANNOTATION_10),
    "C10 left of the image": (change(bbox=[-5, 6, 20, 10]), "warning", "box-partly-outside", ANNOTATION_10),
    "C10 fully outside": (change(bbox=[80, 6, 20, 10]), "warning", "box-without-area", rf"{ANNOTATION_10}.*1 outside"),
    "C11 XYXY": (as_xyxy, "warning", "xyxy-as-xywh", r"are they XYXY, but declared XYWH\?"),
    "C12 NaN": (change(bbox=[5, NAN, 20, 10]), "error", "unreadable-annotation", rf"{ANNOTATION_10} is not finite"),
    "C12 inf": (change(bbox=[5, 6, INF, 10]), "error", "unreadable-annotation", rf"{ANNOTATION_10} is not finite"),
    "C12 inf in a polygon": (change(segmentation=[[1, 2, 3, 4, 5, INF]]), "error", "mask-malformed", ANNOTATION_10),
    "C13 category as a string": (
        change(category_id="4"),
        "error",
        "annotation-category-unknown",
        rf"'4' of {ANNOTATION_10}",
    ),
    "C16 unknown category": (change(category_id=5), "error", "annotation-category-unknown", f"5 of {ANNOTATION_10}"),
    "C19 short polygon": (
        change(segmentation=[[1, 2, 3, 4], [5, 6, 25, 6, 25, 16]]),
        "warning",
        "mask-polygon-short",
        ANNOTATION_10,
    ),
    "C19 only short polygons": (
        change(segmentation=[[1, 2, 3, 4]]),
        "warning",
        "mask-without-polygon",
        rf"{ANNOTATION_10}",
    ),
    "C19 flat polygon": (change(segmentation=[5, 6, 25, 6, 25, 16]), "error", "mask-malformed", ANNOTATION_10),
    "C20 truncated image": (truncate_image, "error", "image-unreadable", r"Image \S*2\.png can't be read"),
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
def test_planted_fault_is_found_and_named(check, dataset, fault):
    """Need B3. Nothing else than the planted fault is found, but for what follows from it."""
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


def test_good_data_are_silent(check, dataset):
    exit_code, report, printed = check(*dataset.arguments(), "--num-classes", 2, "--num-queries", 100)
    assert exit_code == 0
    assert problems(report) == notes(report) == []
    assert "0 errors, 0 warnings, 0 notes" in printed


def test_real_data_are_silent(check, real_data, tmp_path):
    """Both parts of the sample; figures counted independently in the json."""
    coco = real_data / "coco"
    files = {split: coco / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")}
    exit_code, report, _ = check(
        *("--json", files["train"], "--images", coco / "train2017"),
        *("--val-json", files["val"], "--val-images", coco / "val2017", "--num-classes", 80, "--num-queries", 100),
        draw=True,
    )
    assert exit_code == 0
    assert problems(report) == []
    for part, path in zip(report["datasets"], files.values(), strict=True):
        annotations = json.loads(path.read_text())["annotations"]
        objects = [x["image_id"] for x in annotations if not x["iscrowd"]]
        figures = part["statistics"]
        assert figures["objects"] == len(objects) == sum(x["objects"] for x in figures["classes"])
        assert figures["crowds"] == len(annotations) - len(objects)
        assert figures["images_without_objects"] == 50 - len(set(objects))
        assert figures["max_objects"] == max(map(objects.count, set(objects)))
        pairs = {(x["image_id"], x["category_id"]) for x in annotations if not x["iscrowd"]}
        assert sum(x["images"] for x in figures["classes"]) == len(pairs)
    for name in ("preview.png", "preview_2.png"):
        with Image.open(tmp_path / "checked" / name) as picture:
            assert picture.width == picture.height > 1000
            assert np.asarray(picture.convert("L")).std() > 20


def test_all_errors_are_listed(check, dataset):
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
def test_images_that_are_converted_are_noted(check, dataset, mode, orientation, size, note):
    """Edge case C20: none of these is a fault, also an image that EXIF data turn upright, annotated upright."""
    write_image(mode, size, orientation)(dataset)
    exit_code, report, _ = check(*dataset.arguments())
    assert exit_code == 0
    assert problems(report) == []
    assert note in notes(report)


def test_skipping_images(check, dataset):
    """Missing files are found all the same."""
    truncate_image(dataset)
    assert check(*dataset.arguments(), "--skip-images")[0] == 0
    (dataset.images / "2.png").unlink()
    assert check(*dataset.arguments(), "--skip-images")[0] == 1


def test_evaluation_data(check, dataset, tmp_path):
    """Edge case C49, and what COCO's evaluation stumbles over; none of it matters for training."""
    change_all(area=..., iscrowd=...)(dataset)
    change(0, id=0)(dataset)
    dataset.save()
    exit_code, report, _ = check(*dataset.arguments())
    assert (exit_code, problems(report), notes(report)) == (0, [], ["annotation-iscrowd-missing"])
    exit_code, report, _ = check("--val-json", dataset.json_file, "--val-images", dataset.images)
    assert exit_code == 1
    assert problems(report) == [
        ("error", "annotation-iscrowd-missing"),
        ("error", "annotation-area-missing"),
        ("warning", "annotation-id-zero"),
    ]
    del dataset.content["annotations"]
    dataset.save()
    exit_code, report, printed = check("--val-json", dataset.json_file, "--val-images", dataset.images)
    assert exit_code == 0
    assert problems(report) == [("warning", "annotations-missing"), ("warning", "no-objects")]
    assert "AP can't be computed" in re.sub(r"\s+", " ", printed)


def test_classes_that_differ_and_shared_images(check, dataset, tmp_path):
    """Edge case C17."""
    other = Dataset(tmp_path / "other")
    other.content["categories"][1]["name"] = "cow"
    other.save()
    images = ("--val-json", other.json_file, "--val-images")
    exit_code, report, _ = check(*dataset.arguments(), *images, other.images)
    assert exit_code == 1
    assert problems(report) == [("error", "classes-differ")]
    assert "only" in (message := report["between_datasets"][0]["message"])
    assert re.search(r"train\.json' has dog; only .*train\.json' has cow", message)
    other.content["categories"][1]["name"] = "dog"
    other.save()
    exit_code, report, _ = check(*dataset.arguments(), *images, dataset.images)
    assert exit_code == 0
    assert problems(report) == [("warning", "images-shared")]


def test_more_objects_than_queries(check, dataset):
    """Need B10."""
    assert problems(check(*dataset.arguments(), "--num-queries", 2)[1]) == []
    exit_code, report, printed = check(*dataset.arguments(), "--num-queries", 1)
    assert (exit_code, problems(report)) == (0, [("warning", "more-objects-than-queries")])
    assert re.search(r"3 of 3 images .* at most 2, in \S*1\.png", re.sub(r"\s+", " ", printed))


@pytest.fixture
def registered(dataset):
    name = "check_dataset_test_pets"
    register_coco_instances(name, {}, str(dataset.json_file), str(dataset.images))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_registered_dataset(check, dataset, registered):
    """Its file is read as it is: Detectron2's reader would drop the annotation in silence."""
    change(0, segmentation=[[1, 2, 3, 4]])(dataset)
    dataset.save()
    exit_code, report, _ = check("--dataset", registered)
    assert (exit_code, problems(report)) == (0, [("warning", "mask-without-polygon")])
    assert report["datasets"][0]["name"] == registered


def test_config(check, dataset, registered, repository):
    """The numbers of classes and queries are the config's, and options go over it."""
    config = repository / "configs" / "Base-DETR.yaml"
    names = ("DATASETS.TRAIN", f"('{registered}',)", "DATASETS.TEST", "()")
    exit_code, report, _ = check("--config-file", config, *names)
    assert (exit_code, problems(report)) == (1, [("error", "num-classes")])
    options = (*names, "MODEL.DETR.NUM_CLASSES", "2", "MODEL.DETR.NUM_OBJECT_QUERIES", "1")
    exit_code, report, _ = check("--config-file", config, *options)
    assert (exit_code, problems(report)) == (0, [("warning", "more-objects-than-queries")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is not valid json"),
        ("\x89PNG", "is not valid json"),
        ("[1, 2]", "holds a json list"),
        ('{"images": [{}], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ('{"a.png": {"filename": "a.png", "regions": {}}}', "VGG Image Annotator"),
    ],
)
def test_files_of_another_kind(check, dataset, content, message):
    dataset.json_file.write_text(content)
    exit_code, report, printed = check(*dataset.arguments())
    assert (exit_code, report) == (1, None)
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed
    assert "train.json" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give one of --json"),
        (("--json", "none.json", "--images", "."), "none.json does not exist"),
        (("--json", "none.json", "--images", "nowhere"), "folder nowhere does not exist"),
        (("--json", "none.json"), "Give the folder of the images"),
        (("--dataset", "coco_2017_trian"), "Similar names: coco_2017_train"),
        (("--dataset", "coco_2017_train", "--config-file", "a.yaml"), "Give one of"),
        (("--config-file", "none.yaml"), "none.yaml does not exist"),
    ],
)
def test_mistakes_in_the_arguments(check, arguments, message):
    exit_code, report, printed = check(*arguments)
    assert (exit_code, report) == (1, None)
    assert printed.startswith("error: ")
    assert message in printed


def test_everything_wrong_at_once(check, dataset):
    """Whatever stands in the lists, there is a report and no traceback."""
    junk = [None, 3, "x", [], {}, {"id": []}, {"id": 1, "image_id": {}, "category_id": None}]
    for key in ("images", "annotations", "categories"):
        dataset.content[key] += junk
    odd = {"bbox": "abcd", "iscrowd": [], "segmentation": 7, "area": None, "ignore": "x", "category_id": []}
    values = [None, 1.5, "a", [], {}, [None], ["a", 1, 2, 3], {"counts": 1}, [[{}]], True]
    template = dataset.content["annotations"][0]
    dataset.content["annotations"] += [{**template, "id": 100 + i, key: x} for key in odd for i, x in enumerate(values)]
    dataset.save()
    exit_code, report, _ = check(*dataset.arguments(), draw=True)
    assert exit_code == 1
    assert len(problems(report)) > 5


def test_output_that_cannot_be_written(tool, dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tool.main([*dataset.arguments(), "--output", str(tmp_path / "file")]) == 1
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_command(dataset, repository):
    command = [sys.executable, str(SCRIPT), *dataset.arguments()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 errors" in done.stdout
    shutil.rmtree(dataset.images)
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: The image folder")
