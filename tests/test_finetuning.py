"""The steps of docs/OWN_DATA.md, from VIA's annotations to predictions.

COCO's format, the check, training from a checkpoint with another head, evaluation, prediction.
"""

import json
import re

import pytest
import torch

from detr_d2.engine import load_config

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.DETR.HIDDEN_DIM": "32",
    "MODEL.DETR.DIM_FEEDFORWARD": "48",
    "MODEL.DETR.ENC_LAYERS": "1",
    "MODEL.DETR.DEC_LAYERS": "2",
    "MODEL.DETR.NUM_OBJECT_QUERIES": "30",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "TEST.EVAL_PERIOD": "0",
}


@pytest.fixture
def script(run_script):
    """Return a function that runs a script and returns what it wrote, stderr last."""

    def run(name: str, *words: object, code: int = 0) -> str:
        result = run_script(name, *words)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


@pytest.fixture
def coco_checkpoint(make_original, tmp_path):
    """Save a checkpoint of the small model as the original publishes them: a class head of 92 rows."""
    cfg = load_config("configs/finetune_r50.yaml", [word for pair in SMALL.items() for word in pair])
    original = make_original(cfg, num_classes=91)
    torch.save({"model": original.state_dict()}, tmp_path / "detr-small.pth")
    return original.state_dict()


@pytest.fixture
def options(tmp_path):
    """Return config keys for the small model, started from its checkpoint."""
    keys = {**SMALL, "MODEL.WEIGHTS": "detr-small.pth", "OUTPUT_DIR": str(tmp_path / "output")}
    return [word for pair in keys.items() for word in pair]


@pytest.fixture(autouse=True)
def repository_folder(repository, monkeypatch):
    monkeypatch.chdir(repository)


@pytest.mark.slow
def test_from_via_to_predictions(script, coco_checkpoint, options, repository, real_data, tmp_path):
    images = real_data / "coco" / "train2017"
    via = real_data / "via" / "via2_project.json"
    split = ("--val-output", "val.json", "--val-share", "0.25")
    script("tools/via_to_coco.py", via, "--images", images, "--output", "train.json", *split)

    files = ("--json", "train.json", "--images", images, "--val-json", "val.json", "--val-images", images)
    checked = script("tools/check_dataset.py", *files)
    assert "person" in checked

    config = ("--config-file", repository / "configs" / "finetune_r50.yaml")
    own = ("--train-json", "train.json", "--train-images", images, "--val-json", "val.json", "--val-images", images)
    log = script("train_net.py", *config, *own, *options, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", "()")
    assert "MODEL.DETR.NUM_CLASSES 23, from train.json: bicycle, bottle" in log
    total = len(coco_checkpoint)
    summary = re.search(r"loaded (\d+) of (\d+) tensors from detr-small.pth .*; class_embed re-initialized, (.*)", log)
    assert int(summary[2]) - int(summary[1]) == 2
    assert int(summary[2]) <= total
    assert summary[3] == "92 -> 24 rows"
    assert re.search(r"\| +AP +\| +AP50 +\| +AP75 +\|", log)

    trained = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert len(trained["class_names"]) == 23
    assert trained["class_names"][:2] == ["bicycle", "bottle"]
    assert trained["model"]["detr.class_embed.weight"].shape == (24, 32)
    # Three steps of warm-up leave the queries where the checkpoint had them.
    queries = trained["model"]["detr.query_embed.weight"]
    assert 0 < (queries - coco_checkpoint["query_embed.weight"]).abs().max() < 1e-3

    weights = ("MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth")
    dumped = ("--config-file", tmp_path / "output" / "config.yaml")
    script("train_net.py", *dumped, "--eval-only", "--val-json", "val.json", "--val-images", images, *weights)
    results = json.loads((tmp_path / "output" / "inference" / "coco_instances_results.json").read_text())
    val = json.loads((tmp_path / "val.json").read_text())
    assert {x["image_id"] for x in results} == {x["id"] for x in val["images"]}
    assert {x["category_id"] for x in results} <= {x["id"] for x in val["categories"]}

    photo = images / val["images"][0]["file_name"]
    where = ("--input", photo, "--output", "predicted", "--score-thresh", "0")
    script("tools/predict.py", *dumped, *where, *weights)
    detections = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
    assert len(detections) == 30  # as many as queries
    assert (tmp_path / "predicted" / "overlays" / photo.name).is_file()


@pytest.mark.slow
def test_two_processes_train_on_own_data(script, coco_checkpoint, options, real_data, repository, tmp_path):
    """Every process registers the data; the classes that COCO has start from COCO's rows."""
    annotations, images = real_data / "coco" / "annotations" / "instances_val2017.json", real_data / "coco" / "val2017"
    config = ("--config-file", repository / "configs" / "finetune_r50_small_data.yaml")
    own = ("--train-json", annotations, "--train-images", images)
    two = ("--num-gpus", 2, "--dist-url", "auto")
    log = script("train_net.py", *config, *own, *two, *options, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()")
    assert "There is no --val-json: nothing is evaluated." in log
    assert "class_embed by name: 80 of 80 classes loaded" in log
    assert (tmp_path / "output" / "model_final.pth").is_file()


def test_a_flag_without_its_other_half(script, options, repository):
    config = ("--config-file", repository / "configs" / "finetune_r50.yaml")
    error = script("train_net.py", *config, "--train-json", "train.json", *options, code=1)
    assert "error: --train-json goes with --train-images, which is missing: give both." in error
    assert "Traceback" not in error


def test_images_of_another_folder(script, options, real_data, repository, tmp_path):
    """The most common mistake: the parent folder."""
    annotations, images = real_data / "coco" / "annotations" / "instances_val2017.json", real_data / "coco"
    config = ("--config-file", repository / "configs" / "finetune_r50.yaml")
    error = script("train_net.py", *config, "--train-json", annotations, "--train-images", images, *options, code=1)
    assert "error: " in error
    assert "does not exist" in error
    assert "Traceback" not in error
    assert not (tmp_path / "output" / "model_final.pth").exists()
