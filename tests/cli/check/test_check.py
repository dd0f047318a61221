"""The command ``check`` as it is used; good data leave it silent."""

import json
import re
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from detr_d2 import register_coco_dataset
from detr_d2.cli.check import main


def test_good_data_are_silent(check, dataset, problems, notes):
    exit_code, report, printed = check(*dataset.arguments(), "--num-classes", 2, "--num-queries", 100)
    assert exit_code == 0
    assert problems(report) == notes(report) == []
    assert "0 errors, 0 warnings, 0 notes" in printed


@pytest.mark.slow
def test_real_data_are_silent(check, real_data, tmp_path, problems):
    """Both splits of the sample; statistics counted independently in the json."""
    coco = real_data / "coco"
    files = {split: coco / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")}
    exit_code, report, _ = check(
        *("--train-json", files["train"], "--train-images", coco / "train2017"),
        *("--val-json", files["val"], "--val-images", coco / "val2017", "--num-classes", 80, "--num-queries", 100),
        preview=True,
    )
    assert exit_code == 0
    assert problems(report) == []
    for part, path in zip(report["datasets"], files.values(), strict=True):
        annotations = json.loads(path.read_text())["annotations"]
        objects = [x["image_id"] for x in annotations if not x["iscrowd"]]
        statistics = part["statistics"]
        assert statistics["objects"] == len(objects) == sum(x["objects"] for x in statistics["classes"])
        assert statistics["crowds"] == len(annotations) - len(objects)
        assert statistics["images_without_objects"] == 50 - len(set(objects))
        assert statistics["max_objects"] == max(map(objects.count, set(objects)))
        pairs = {(x["image_id"], x["category_id"]) for x in annotations if not x["iscrowd"]}
        assert sum(x["images"] for x in statistics["classes"]) == len(pairs)
    for name in ("preview.png", "preview_2.png"):
        with Image.open(tmp_path / "checked" / name) as preview:
            assert preview.width == preview.height > 1000
            assert np.asarray(preview.convert("L")).std() > 20


def test_images_as_training_sees_them(check, dataset, tmp_path, catalogs):
    """In the size of the training, with the augmentation and the targets of the config."""
    register_coco_dataset("checked", str(dataset.json_file), str(dataset.images))
    config = ("--config-file", "smca_shapes_cpu", "DATASETS.TRAIN", "('checked',)", "DATASETS.TEST", "('checked',)")
    classes = ("MODEL.DETR.NUM_CLASSES", len(dataset.content["categories"]))
    assert check(*config, *classes, "INPUT.CROP.ENABLED", "True", preview=True)[0] == 0
    assert sorted(x.name for x in (tmp_path / "checked").glob("*.png")) == ["preview.png", "training.png"]
    first = (tmp_path / "checked" / "training.png").read_bytes()
    assert first != (tmp_path / "checked" / "preview.png").read_bytes()
    assert check(*config, *classes, "INPUT.CROP.ENABLED", "True", preview=True)[0] == 0
    assert (tmp_path / "checked" / "training.png").read_bytes() == first


def test_images_of_a_trusted_config(check, dataset, tmp_path, catalogs):
    """The training images are drawn with the config that the checks read."""
    register_coco_dataset("checked", str(dataset.json_file), str(dataset.images))
    config = tmp_path / "config.yaml"
    names = '!!python/object/apply:builtins.tuple [["checked"]]'
    config.write_text(f"DATASETS: {{TRAIN: {names}, TEST: []}}\n")
    classes = ("MODEL.DETR.NUM_CLASSES", len(dataset.content["categories"]))
    assert check("--config-file", config, *classes, preview=True)[0] == 1
    assert check("--config-file", config, "--trust", *classes, preview=True)[0] == 0
    assert (tmp_path / "checked" / "training.png").is_file()


def test_skipping_images(check, dataset):
    """Missing files are found all the same."""
    path = dataset.images / "2.png"
    path.write_bytes(path.read_bytes()[:500])
    assert check(*dataset.arguments(), "--skip-images")[0] == 0
    path.unlink()
    assert check(*dataset.arguments(), "--skip-images")[0] == 1


def test_evaluation_data(check, dataset, problems, notes):
    """Annotations without area or iscrowd, and what COCO's evaluation fails on; training needs neither."""
    for item in dataset.content["annotations"]:
        del item["area"], item["iscrowd"]
    dataset.content["annotations"][0]["id"] = 0
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


def test_classes_that_differ_and_shared_images(check, dataset, make_dataset, problems):
    other = make_dataset("other")
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


def test_more_objects_than_queries(check, dataset, problems):
    """A warning with the counts and an example."""
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


def test_registered_dataset(check, dataset, registered, problems):
    """Its file is read as it is: Detectron2's reader would drop the annotation in silence."""
    dataset.content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    dataset.save()
    exit_code, report, _ = check("--dataset", registered)
    assert (exit_code, problems(report)) == (0, [("warning", "mask-without-polygon")])
    assert report["datasets"][0]["name"] == registered


def test_config(check, dataset, registered, repository, problems):
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
        ('{"images": [', "is not valid JSON"),
        ("\x89PNG", "is not valid JSON"),
        ("[1, 2]", "holds a JSON list"),
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
        ((), "Give one of --train-json"),
        (("--json", "none.json", "--images", "."), "none.json does not exist"),
        (("--json", "none.json", "--images", "nowhere"), "folder nowhere does not exist"),
        (("--json", "none.json"), "Give the folder of the images"),
        (("--dataset", "coco_2017_trian"), "Did you mean coco_2017_train"),
        (("--dataset", "coco_2017_train", "--config-file", "a.yaml"), "Give one of"),
        (("--config-file", "none.yaml"), "none.yaml does not exist"),
    ],
)
def test_mistakes_in_the_arguments(check, arguments, message):
    exit_code, report, printed = check(*arguments)
    assert (exit_code, report) == (1, None)
    assert printed.startswith("error: ")
    assert message in printed


def test_output_that_cannot_be_written(dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*dataset.arguments(), "--output", str(tmp_path / "file")]) == 1
    assert "can't be written" in capsys.readouterr().err


def test_as_a_script(dataset, run_script):
    done = run_script("tools/check_dataset.py", *dataset.arguments())
    assert done.returncode == 0, done.stderr
    assert "0 errors" in done.stdout


def test_missing_images(dataset, capsys):
    shutil.rmtree(dataset.images)
    assert main(dataset.arguments()) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: The image folder")
