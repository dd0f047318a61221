"""Training and evaluation of LazyConfigs, by the command and by Detectron2's script."""

import argparse
import json
import runpy
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_d2.cli.train import main
from detr_d2.config import load_config, load_lazy_config
from detr_d2.data import register_coco_dataset
from detr_d2.engine import Trainer

SMALL = [
    *("model.network.num_classes=5", "model.network.num_queries=7", "model.network.transformer.hidden_dim=32"),
    *("model.network.transformer.dim_feedforward=48", "model.network.transformer.dec_layers=2"),
    *("dataloader.train.records.names=[noise]", "dataloader.test.dataset.dataset_name=noise"),
    *("dataloader.train.batch_size=4", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
    *("dataloader.train.mapper.augmentations.1.short_edge_length=[32,48]",),
    *("dataloader.test.mapper.augmentations.0.short_edge_length=32",),
    *("train.max_iter=2", "train.seed=3", "train.log_period=1", "train.checkpointer.period=1"),
]
SMALL_YAML = (
    *("MODEL.DETR.NUM_CLASSES", 5, "MODEL.DETR.NUM_OBJECT_QUERIES", 7, "MODEL.DETR.HIDDEN_DIM", 32),
    *("MODEL.DETR.DIM_FEEDFORWARD", 48, "MODEL.DETR.DEC_LAYERS", 2, "DATASETS.TRAIN", "('noise',)"),
    *("DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0, "SEED", 3),
    *("INPUT.MIN_SIZE_TRAIN", "(32, 48)", "INPUT.MIN_SIZE_TEST", 32),
    # The warmup is a share of the training.
    *("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0),
)


def small_yaml(*options: str) -> CfgNode:
    return load_config("smca_shapes_cpu", [*map(str, SMALL_YAML), *options])


@pytest.fixture
def noise(noise_records, tmp_path, catalogs) -> None:
    """Register the records as COCO's file, and run in the test's folder."""
    images = [{k: x[k] for k in ("height", "width")} | {"id": x["image_id"]} for x in noise_records]
    annotations = []
    for image, record in zip(images, noise_records, strict=True):
        image["file_name"] = Path(record["file_name"]).name
        for x in record["annotations"]:
            x = {k: x[k] for k in ("bbox", "iscrowd")} | {"category_id": x["category_id"] + 1, "area": 108}
            annotations.append({**x, "id": len(annotations) + 1, "image_id": image["id"]})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate("abcde")]
    file = tmp_path / "noise.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_dataset("noise", str(file), str(tmp_path))


@pytest.fixture
def weights(tmp_path) -> str:
    """Save a model's initial weights, and return the file."""
    torch.manual_seed(0)
    file = tmp_path / "weights.pth"
    torch.save({"model": build_model(small_yaml()).state_dict()}, file)
    return str(file)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def run(*words: str) -> int:
    return main(["--config-file", "lazy/smca_shapes_cpu", *SMALL, *words])


def test_losses_are_those_of_the_yaml_config(noise, weights, tmp_path):
    """From equal weights, in equal order of images, with equal random numbers."""
    options = ("lr_multiplier.warmup_length=0.0", "train.eval_period=0")
    assert run(f"train.init_checkpoint={weights}", "--output", str(tmp_path / "lazy"), *options) == 0
    (tmp_path / "yaml").mkdir()
    trainer = Trainer(small_yaml("MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "yaml")))
    trainer.resume_or_load(resume=False)
    trainer.train()
    lazy, yaml = ([x for x in metrics(tmp_path / name) if "total_loss" in x][-1] for name in ("lazy", "yaml"))
    assert lazy["iteration"] == yaml["iteration"] == 1
    compared = {name: x for name, x in yaml.items() if "loss" in name or name == "lr"}
    assert len(compared) == 8
    assert {name: lazy[name] for name in compared} == pytest.approx(compared, rel=1e-5)
    trained = [torch.load(tmp_path / x / "model_final.pth", weights_only=True) for x in ("lazy", "yaml")]
    assert trained[0]["class_names"] == trained[1]["class_names"] == [*"abcde"]


def test_trains_averages_resumes_and_evaluates(noise, tmp_path):
    output = ("--output", str(tmp_path / "run"))
    options = ("train.ema.enabled=True", "train.amp.enabled=True", "train.accumulate=2")
    options += ("train.logging.trackers=[csv,tensorboard]", "train.logging.images=2")
    options += ("train.best.metric=bbox/AP", "train.progressive.start=0.5")
    assert run(*output, *options, "train.max_iter=1", "train.eval_period=0") == 0
    assert run(*output, *options, "--resume", "train.eval_period=2") == 0
    lines = metrics(tmp_path / "run")
    assert [x["iteration"] for x in lines if "total_loss" in x] == [0, 1]
    assert "bbox/AP" in lines[-1]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [x.split(",")[0] for x in rows] == ["iteration", "0", "1", "2"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    # Of the first training, and of the one that continues it.
    assert [x.step for x in events.Scalars("bbox/AP")] == [1, 2]
    assert events.Scalars("bbox/AP")[1].value == pytest.approx(lines[-1]["bbox/AP"])
    assert len(events.Tags()["images"]) == 2
    saved = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    best = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)["model"]
    assert torch.equal(best["detr.query_embed.weight"], saved["model"]["detr.query_embed.weight"])
    averaged, trained = saved["model"], saved["trainer"]["hooks"]["WeightAverage"]["weights"]
    assert not torch.equal(averaged["detr.query_embed.weight"], trained["detr.query_embed.weight"])
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    results.unlink()
    checkpoint = str(tmp_path / "run" / "model_final.pth")
    assert run(*output, "--eval-only", f"train.init_checkpoint={checkpoint}") == 0
    assert len(json.loads(results.read_text())) == 7 * 7


def test_detectron2s_script_trains(noise, tmp_path):
    script = Path(detectron2.__file__).parents[1] / "tools" / "lazyconfig_train_net.py"
    if not script.is_file():
        pytest.skip("Detectron2 was installed without its tools")
    output = f"train.output_dir={tmp_path}"
    cfg = load_lazy_config("lazy/smca_shapes_cpu", [*SMALL, output, "train.eval_period=2", "train.seed=-1"])
    runpy.run_path(str(script))["do_train"](argparse.Namespace(resume=False), cfg)
    assert [x["iteration"] for x in metrics(tmp_path) if "total_loss" in x] == [0, 1]
    model = instantiate(cfg.model)
    model.load_state_dict(torch.load(tmp_path / "model_final.pth", weights_only=False)["model"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.network.num_classes=4"], "NUM_CLASSES is 4 but dataset 'noise' has 5 thing classes"),
        (["train.device=cuda:7"], "train.device is cuda:7, but PyTorch finds no CUDA GPU: add train.device=cpu."),
        (["--train-json", "a.json"], "--train-json goes with YAML configs"),
        (["--eval-only"], "There are no weights to evaluate: add train.init_checkpoint=CHECKPOINT."),
        (["MODEL.DEVICE", "cpu"], "written key=value; MODEL.DEVICE is not"),
        (["dataloader.train.records.names=[nowhere]"], "Dataset 'nowhere' is not registered"),
    ],
)
def test_mistakes_are_one_message(noise, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--output", str(tmp_path / "run"), *words) == 1
    assert message in capsys.readouterr().err


def test_missing_parts_are_named(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("train = dict(device='cpu')\nmodel = dict()\n")
    assert main(["--config-file", str(file), "--trust"]) == 1
    assert "mine.py has no dataloader, optimizer, lr_multiplier" in capsys.readouterr().err
