"""The script train_net.py."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from detr_d2 import model_zoo

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.DETR.HIDDEN_DIM": "32",
    "MODEL.DETR.DIM_FEEDFORWARD": "32",
    "MODEL.DETR.ENC_LAYERS": "1",
    "MODEL.DETR.DEC_LAYERS": "2",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "TEST.EVAL_PERIOD": "0",
}


@pytest.fixture
def arguments(repository, tmp_path):
    """Return a function that makes arguments for a config of COCO cut down to a small model on small images."""

    def make(*flags: str, name: str = "detr_256_6_6_torchvision", **options: str) -> list[str]:
        config = repository / "configs" / f"{name}.yaml"
        keys = {name.replace("__", "."): value for name, value in options.items()}
        merged = {**SMALL, "OUTPUT_DIR": str(tmp_path / "output"), **keys}
        return ["--config", str(config), *flags, *(word for pair in merged.items() for word in pair)]

    return make


@pytest.fixture
def train(arguments, real_coco, run_script):
    """Return a function that runs train_net.py: see ``arguments``."""

    def run(*flags: str, datasets: Path, **options: str) -> CompletedProcess:
        real_coco(datasets)
        return run_script("train_net.py", *arguments(*flags, **options))

    return run


def assert_refused(result: CompletedProcess, *words: str) -> None:
    """One message, no traceback, exit code 1."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    messages = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_trains_resumes_and_evaluates(train, real_data, tmp_path):
    first = train(datasets=real_data, SOLVER__MAX_ITER="2", SOLVER__CHECKPOINT_PERIOD="1")
    assert first.returncode == 0, first.stderr
    assert "transformer and heads" in first.stdout  # the table of parameter groups
    assert first.stdout.index("transformer and heads") < first.stdout.index("Starting training from iteration 0")
    output = tmp_path / "output"
    assert (output / "last_checkpoint").read_text() == "model_final.pth"

    resumed = train("--resume", datasets=real_data, SOLVER__MAX_ITER="4", TEST__EVAL_PERIOD="4")
    assert resumed.returncode == 0, resumed.stderr
    assert "Starting training from iteration 2" in resumed.stdout
    trained = torch.load(output / "model_final.pth", weights_only=True)
    assert trained["iteration"] == 3
    assert trained["class_names"][0] == "person"

    evaluated = train("--eval-only", datasets=real_data, MODEL__WEIGHTS=str(output / "model_final.pth"))
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Optimized for inference: 20 batch norms folded" in evaluated.stdout
    assert re.search(r"\| +AP +\| +AP50 +\| +AP75 +\|", evaluated.stdout)
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert len(results) == 50 * 100
    # COCO's own category ids, not the contiguous ones.
    assert {x["category_id"] for x in results} <= set(range(1, 91))
    evaluation = json.loads((output / "inference" / "coco_2017_val" / "evaluation.json").read_text())
    assert evaluation["classes"][0]["name"] == "person"


@pytest.fixture
def panoptic_coco(real_data, tmp_path):
    """COCO's two panoptic examples, laid out as COCO is, with their things as instances."""
    examples, coco = real_data / "coco_panoptic", tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "val2017").symlink_to(examples / "input_images")
    (coco / "panoptic_val2017").symlink_to(examples / "panoptic_examples")
    (coco / "annotations" / "panoptic_val2017.json").symlink_to(examples / "panoptic_examples.json")
    content = json.loads((examples / "panoptic_examples.json").read_text())
    things = [x for x in content["categories"] if x["isthing"]]
    instances = []
    for annotation in content["annotations"]:
        maps = np.asarray(Image.open(examples / "panoptic_examples" / annotation["file_name"])).astype(int)
        for segment in annotation["segments_info"]:
            if segment["category_id"] in {x["id"] for x in things}:
                mask = maps @ [1, 256, 65536] == segment["id"]
                rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                rle["counts"] = rle["counts"].decode()
                instances.append({**segment, "id": len(instances), "image_id": annotation["image_id"]})
                instances[-1]["segmentation"] = rle
    instances = {"images": content["images"], "annotations": instances, "categories": things}
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(instances))
    return tmp_path


@pytest.mark.slow
def test_evaluates_boxes_masks_and_segments(train, panoptic_coco, repository, tmp_path):
    """One run gives box AP, mask AP and PQ, where the dataset has instances beside its segments."""
    name = "detr_segm_256_6_6_torchvision_panoptic"
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list([x for pair in {**SMALL, "MODEL.DETR.FROZEN_WEIGHTS": ""}.items() for x in pair])
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    # The most probable class counts, however improbable.
    options = {"MODEL__WEIGHTS": str(tmp_path / "model.pth"), "MODEL__DETR__PANOPTIC__SCORE_THRESHOLD": "0"}
    result = train("--eval-only", datasets=panoptic_coco, name=name, **options)
    assert result.returncode == 0, result.stderr
    tasks = re.findall(r"copypaste: Task: (\w+)", result.stdout)
    assert tasks == ["bbox", "segm", "panoptic_seg"]
    assert re.search(r"\| things +\| +\d+\.\d\d", result.stdout)
    folder = tmp_path / "output" / "inference" / "coco_2017_val_panoptic"
    for task in ("", "segm"):
        classes = json.loads((folder / task / "evaluation.json").read_text())["classes"]
        assert [x["name"] for x in classes if x["objects"]] == ["person", "truck", "horse", "sports ball"]
    written = json.loads((folder / "panoptic" / "predictions.json").read_text())
    assert [x["image_id"] for x in written["annotations"]] == [142238, 439180]


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_refuses_a_missing_dataset(train, tmp_path, processes):
    result = train("--num-gpus", processes, "--dist-url", "auto", datasets=tmp_path / "nowhere")
    assert_refused(result, str(tmp_path / "nowhere" / "coco"), "DETECTRON2_DATASETS")
    assert not (tmp_path / "output" / "model_final.pth").exists()


def test_refuses_an_unknown_key(train, real_data, tmp_path):
    result = train(datasets=real_data, MODEL__DETR__NUM_CLASES="3")
    assert_refused(result, "MODEL.DETR.NUM_CLASES", "Did you mean MODEL.DETR.NUM_CLASSES?")
    assert not (tmp_path / "output").exists()


def test_refuses_a_wrong_number_of_classes(train, real_data):
    result = train(datasets=real_data, MODEL__DETR__NUM_CLASSES="81")
    assert_refused(result, "has 80 thing classes (person, bicycle", "Do not count a no-object class")


def test_refuses_a_truncated_checkpoint(train, real_data, tmp_path):
    file = tmp_path / "half.pth"
    torch.save({"model": {"detr.query_embed.weight": torch.zeros(100, 256)}}, file)
    file.write_bytes(file.read_bytes()[:2000])
    assert_refused(train("--eval-only", datasets=real_data, MODEL__WEIGHTS=str(file)), str(file))


def test_refuses_another_architectures_checkpoint(train, real_data, tmp_path):
    file = tmp_path / "rcnn.pth"
    names = ("backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight")
    torch.save({"model": {name: torch.zeros(2, 2) for name in names}}, file)
    assert_refused(train("--eval-only", datasets=real_data, MODEL__WEIGHTS=str(file)), str(file))


def test_a_truncated_image_ends_training_with_its_path(train, real_data, tmp_path):
    """From a loader's worker."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "annotations").symlink_to(real_data / "coco" / "annotations")
    (tmp_path / "coco" / "val2017").symlink_to(real_data / "coco" / "val2017")
    images = tmp_path / "coco" / "train2017"
    images.mkdir()
    for image in (real_data / "coco" / "train2017").iterdir():
        (images / image.name).write_bytes(image.read_bytes()[:3000])
    assert_refused(train(datasets=tmp_path, DATALOADER__NUM_WORKERS="1"), str(images))
