"""``--train-data`` and ``--val-data``: datasets of other formats where a COCO file is expected."""

import argparse
import json
import os
import pickle
from functools import partial

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_d2 import add_detr_config
from detr_d2.cli.arguments import add_data_arguments
from detr_d2.cli.main import main
from detr_d2.data import check_datasets
from detr_d2.engine import use_own_data
from detr_d2.engine.data_conversion import _temporary_folder, convert_data
from detr_d2.engine.own_data import TRAIN, VAL
from detr_d2.utils.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch, catalogs):
    """Make a working folder with YOLO data in yolo/, VOC data in voc/ and a COCO file with its images."""
    monkeypatch.chdir(tmp_path)
    for name in ("yolo/images/train/a.png", "yolo/images/val/b.png", "voc/c.png", "coco/images/d.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    files = {
        "yolo/labels/train/a.txt": "1 0.5 0.5 0.5 0.5",
        "yolo/labels/val/b.txt": "0 0.5 0.5 0.5 0.25",
        "yolo/data.yaml": "train: images/train\nval: images/val\nnames: [zebra, cat]",
        "voc/c.xml": "<annotation><object><name>ant</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
        "<ymax>8</ymax></bndbox></object></annotation>",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    box = {"id": 1, "image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    images = [{"id": 4, "file_name": "d.png", "width": 60, "height": 40}]
    coco = {"images": images, "annotations": [box], "categories": [{"id": 2, "name": "cat"}]}
    (tmp_path / "coco" / "d.json").write_text(json.dumps(coco))
    return tmp_path


def parse(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs="*")
    return add_data_arguments(parser).parse_args(words)


def use(*words):
    cfg = get_cfg()
    add_detr_config(cfg)
    return cfg, use_own_data(cfg, parse(*words))


def test_training_data_bring_their_split_for_validation(folder):
    cfg, messages = use("--train-data", "yolo")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN,), (VAL,))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    assert MetadataCatalog.get(VAL).thing_classes == ["zebra", "cat"]
    (train,), (val,) = DatasetCatalog.get(TRAIN), DatasetCatalog.get(VAL)
    assert os.path.samefile(train["file_name"], "yolo/images/train/a.png")
    assert [(x["category_id"], x["bbox"]) for x in train["annotations"]] == [(1, [15, 10, 30, 20])]
    assert [(x["category_id"], x["bbox"]) for x in val["annotations"]] == [(0, [15, 15, 30, 10])]
    assert messages[0].startswith("yolo is of the format yolo (YOLO): yolo/data.yaml")
    assert "Its split train is trained on, its split val evaluated on." in messages
    check_datasets(cfg)


@pytest.mark.parametrize("flag", ["--val-data", "--test-data"])
def test_two_datasets_get_the_same_classes(folder, flag):
    cfg, _ = use("--train-data", "voc", flag, "yolo")
    assert MetadataCatalog.get(TRAIN).thing_classes == ["zebra", "cat", "ant"]
    assert MetadataCatalog.get(VAL).thing_classes == ["zebra", "cat", "ant"]
    check_datasets(cfg)


def test_requested_classes(folder):
    use("--train-data", "voc", "--val-data", "yolo", "--classes", "ant,zebra")
    assert MetadataCatalog.get(TRAIN).thing_classes == ["ant", "zebra"]
    assert [x["category_id"] for x in DatasetCatalog.get(VAL)[0]["annotations"]] == [1]


def test_evaluation_alone(folder):
    cfg, _ = use("--eval-only", "--val-data", "voc", "--classes", "zebra,ant")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.DETR.NUM_CLASSES) == ((), (VAL,), 2)


def test_a_coco_file_is_used_as_it_is(folder):
    args = parse("--train-data", "coco/d.json", "--val-json", "v.json", "--val-images", "v")
    convert_data(args)
    assert (args.train_json, args.train_images) == ("coco/d.json", "coco/images")
    assert (args.val_json, args.val_images) == ("v.json", "v")
    os.rename("coco/images", "elsewhere")
    with pytest.raises(UserError, match=r"Image 'd.png' of coco/d.json is not in .*--train-images"):
        convert_data(parse("--train-data", "coco/d.json"))
    args = parse("--train-data", "coco/d.json", "--train-images", "elsewhere")
    convert_data(args)
    assert args.train_images == "elsewhere"


def test_processes_that_are_started_use_the_files(folder):
    args = parse("--train-data", "yolo")
    messages = convert_data(args)
    other = pickle.loads(pickle.dumps(args))
    assert convert_data(other) == messages
    assert other.train_json == args.train_json


def test_the_files_are_removed_with_the_process(folder, monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", lambda *call, **options: at_exit.append(partial(*call, **options)))
    _temporary_folder.cache_clear()
    for _ in range(2):
        args = parse("--train-data", "yolo")
        convert_data(args)
    assert sorted(os.listdir(os.path.dirname(args.val_json))) == ["train.json", "val.json"]
    (remove,) = at_exit
    remove()
    _temporary_folder.cache_clear()
    assert not os.path.exists(os.path.dirname(args.val_json))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train-data", "yolo", "--train-json", "coco/d.json"), "--train-data is given instead of --train-json"),
        (("--classes", "cat"), "--classes goes with --train-data"),
        (("--train-data", "nowhere"), "nowhere does not exist"),
        (("--train-data", "."), "none of the known formats"),
        (("--train-data", "voc", "--train-images", "coco"), "1 of 1 images do not exist.*--train-images"),
        (("--val-data", "yolo"), "is only evaluated on"),
    ],
)
def test_mistakes(folder, words, message):
    with pytest.raises(UserError, match=message):
        use(*words)


def test_check_and_its_report(folder, capsys):
    assert main(["check", "--train-data", "yolo", "--val-data", "voc"]) == 0
    printed = capsys.readouterr().out
    assert "yolo is of the format yolo" in printed
    assert "voc is of the format voc" in printed
    assert "0 errors" in printed
