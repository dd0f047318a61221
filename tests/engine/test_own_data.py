import argparse
import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_d2 import add_detr_config
from detr_d2.cli.arguments import add_data_arguments
from detr_d2.data import check_datasets
from detr_d2.engine import load_config, use_own_data
from detr_d2.engine.own_data import TRAIN, VAL
from detr_d2.utils.errors import UserError


@pytest.fixture(autouse=True)
def no_leftovers():
    yield
    for name in {TRAIN, VAL} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Make a working folder with train.json of two classes, val.json of the same, and the folder images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    box = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": []}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, **box}],
    }
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


TRAIN_FLAGS = ("--train-json", "train.json", "--train-images", "images")
VAL_FLAGS = ("--val-json", "val.json", "--val-images", "images")


def use(*words, config=None):
    """Return the config after ``words`` of a command line, and the messages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = add_data_arguments(parser).parse_args(words)
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = config or (("coco_2017_train",), ("coco_2017_val",))
    cfg.merge_from_list(args.opts)
    return cfg, use_own_data(cfg, args)


def test_both_splits(paths):
    cfg, messages = use(*TRAIN_FLAGS, *VAL_FLAGS)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN,), (VAL,))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    assert "MODEL.DETR.NUM_CLASSES 2, from train.json: cat, dog." in messages
    assert not [m for m in messages if "nothing is evaluated" in m]
    assert MetadataCatalog.get(TRAIN).thing_classes == ["cat", "dog"]
    check_datasets(cfg)


def test_training_alone_says_that_nothing_is_evaluated(paths):
    cfg, messages = use(*TRAIN_FLAGS)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN,), ())
    assert "There is no --val-json: nothing is evaluated." in messages


def test_evaluation_alone(paths):
    cfg, messages = use("--eval-only", *VAL_FLAGS)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), (VAL,))
    assert "MODEL.DETR.NUM_CLASSES 2, from val.json: cat, dog." in messages


@pytest.fixture
def panoptic_paths(paths):
    """Add panoptic.json, of two things and a kind of stuff, and the folder maps."""
    (paths / "maps").mkdir()
    for name in ("images/a.jpg", "maps/a.png"):
        Image.fromarray(np.full((40, 60, 3), (5, 0, 0), dtype=np.uint8)).save(paths / name)
    segment = {"id": 5, "category_id": 1, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 0}
    categories = [("sky", 1, 0), ("cat", 7, 1), ("dog", 3, 1)]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "categories": [{"id": i, "name": name, "isthing": isthing} for name, i, isthing in categories],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [segment]}],
    }
    (paths / "panoptic.json").write_text(json.dumps(content))
    return paths


PANOPTIC_FLAGS = ("--train-json", "panoptic.json", "--train-images", "images", "--train-panoptic", "maps")
PANOPTIC_VAL_FLAGS = ("--val-json", "panoptic.json", "--val-images", "images", "--val-panoptic", "maps")


def test_panoptic_data(panoptic_paths):
    """The config says how many classes are things, so that a model predicts where the dataset is not registered."""
    cfg, messages = use(*PANOPTIC_FLAGS, *PANOPTIC_VAL_FLAGS)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN,), (VAL,))
    assert (cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.PANOPTIC.NUM_THINGS) == (3, 2)
    assert "MODEL.DETR.NUM_CLASSES 3, from panoptic.json: dog, cat, sky." in messages
    assert "MODEL.DETR.PANOPTIC.NUM_THINGS 2: the first classes are things, the others stuff." in messages
    assert "Dataset 'own_val' is panoptic.json with images in images and panoptic maps in maps." in messages
    check_datasets(cfg)
    cfg, messages = use(*PANOPTIC_FLAGS, "MODEL.DETR.PANOPTIC.NUM_THINGS", "1")
    assert cfg.MODEL.DETR.PANOPTIC.NUM_THINGS == 1


def test_panoptic_and_other_data_do_not_mix(panoptic_paths):
    with pytest.raises(UserError, match="--train-panoptic and --val-panoptic go together"):
        use(*PANOPTIC_FLAGS, *VAL_FLAGS)


def test_without_the_flags_nothing_changes(paths):
    cfg, messages = use()
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    assert cfg.MODEL.DETR.NUM_CLASSES == 80
    assert messages == []
    # A parser without the flags.
    assert use_own_data(cfg, argparse.Namespace(opts=[])) == []


def test_a_number_of_classes_that_disagrees_is_left_to_the_check(paths):
    cfg, messages = use(*TRAIN_FLAGS, "MODEL.DETR.NUM_CLASSES", "3")
    assert cfg.MODEL.DETR.NUM_CLASSES == 3
    assert not [m for m in messages if "NUM_CLASSES" in m]
    with pytest.raises(UserError, match=r"NUM_CLASSES is 3 but dataset 'own_train' has 2 thing classes \(cat, dog\)"):
        check_datasets(cfg)


def test_classes_of_validation_must_be_those_of_training(paths):
    content = json.loads((paths / "val.json").read_text())
    content["categories"][0]["name"] = "cow"
    (paths / "val.json").write_text(json.dumps(content))
    cfg, _ = use(*TRAIN_FLAGS, *VAL_FLAGS)
    with pytest.raises(UserError, match="different classes") as error:
        check_datasets(cfg)
    assert all(word in str(error.value) for word in ("own_train", "own_val", "dog", "cow"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train-json", "train.json"), "--train-json goes with --train-images, which is missing"),
        (("--train-images", "images"), "--train-images goes with --train-json, which is missing"),
        (("--train-panoptic", "images"), "--train-panoptic goes with --train-json, which is missing"),
        (PANOPTIC_FLAGS[2:], "--train-images goes with --train-json"),
        ((*TRAIN_FLAGS, "--val-json", "val.json"), "--val-json goes with --val-images"),
        ((*TRAIN_FLAGS, "--val-images", "images"), "--val-images goes with --val-json"),
        (VAL_FLAGS, "give --train-json and --train-images too, or --eval-only"),
        (("--eval-only", *TRAIN_FLAGS), "--eval-only evaluates on --val-json and --val-images: give them"),
        (("--train-json", "no.json", "--train-images", "images"), "no.json does not exist"),
    ],
)
def test_half_given(paths, words, message):
    with pytest.raises(UserError, match=message):
        use(*words)


def test_a_config_for_own_data_without_the_flags(paths):
    both = ((TRAIN,), (VAL,))
    with pytest.raises(UserError, match="--train-json and --train-images, --val-json and --val-images"):
        use(config=both)
    with pytest.raises(UserError, match="give --val-json and --val-images, or set"):
        use("--eval-only", config=both)


def test_a_flag_as_the_value_of_an_option_is_reported():
    with pytest.raises(UserError, match="--train-json is among the options"):
        load_config("", ["MODEL.DEVICE", "cpu", "--train-json", "train.json"])
