"""Exact resume: a run that continues from any of its checkpoints ends as it ended without an interruption."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import hooks
from PIL import Image

from detr_d2.engine import Trainer

# What a clock measures.
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
# Of half a million parameters, since several checkpoints are written.
TINY_RESNET = (
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
)
AVERAGE = ("SOLVER.EMA.ENABLED", True)
MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8)
CASES = {
    "averaged, denoising": (*AVERAGE, "MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2),
    "workers, accumulation": ("DATALOADER.NUM_WORKERS", 2, "SOLVER.ACCUMULATE", 2),
    "bfloat16, colors": ("SOLVER.AMP.ENABLED", True, "INPUT.COLOR_JITTER", 0.4, "INPUT.AUGMENTATION", "light"),
    "masks, workers": (*MASKS, "DATALOADER.NUM_WORKERS", 2),
    "SMCA, trained norms, no groups by shape": (
        *("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
    ),
}


def make_records(folder: Path, count: int = 7) -> list[dict]:
    """Write noise, tall and wide, and return records with two objects each."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        width, height = (48, 32) if i % 3 else (32, 40)
        file = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        annotations = []
        for x, y in ((2, 3), (10 + i, 12)):
            polygon = [x, y, x + 12, y, x + 12, y + 9, x, y + 9]
            box = {"bbox": [x, y, 12, 9], "bbox_mode": 1, "segmentation": [polygon]}
            annotations.append({**box, "category_id": i % 5, "iscrowd": 0})
        records.append({"file_name": str(file), "image_id": i, "height": height, "width": width})
        records[-1]["annotations"] = annotations
    return records


@pytest.fixture
def make_trainer(make_cfg, catalog, tmp_path):
    """Return a function that makes a trainer on small images that starts, or resumes, the run in a folder."""
    catalog("noise", make_records(tmp_path), thing_classes=list("abcde"))

    def make(folder: Path, *options, resume: bool = False) -> Trainer:
        cfg = make_cfg(
            *("DATASETS.TRAIN", ("noise",), "DATASETS.TEST", (), "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 6),
            *("SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.MIN_SIZE_TRAIN", (32, 48), "INPUT.CROP.RESIZE_SIZES", (32, 40), "INPUT.CROP.SIZE", (20, 30)),
            *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, *TINY_RESNET, *options),
        )
        folder.mkdir(exist_ok=True)
        trainer = Trainer(cfg)
        for hook in trainer._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = 2
        trainer.resume_or_load(resume=resume)
        return trainer

    return make


def differences(a, b, path: str = "") -> list[str]:
    """Return where two checkpoints differ in any bit, except in measured times."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [x for key in a if key not in TIMES for x in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return [x for i, (x, y) in enumerate(zip(a, b, strict=True)) for x in differences(x, y, f"{path}/{i}")]
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [path]


def read_metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.json").read_text().splitlines()
    return [{key: x for key, x in json.loads(line).items() if key not in TIMES} for line in lines]


def copy_interrupted(run: Path, iteration: int) -> Path:
    """Copy the folder of a run as if the run had been killed some iterations after a checkpoint."""
    folder = run.with_name(f"{run.name}_after_{iteration}")
    shutil.copytree(run, folder)
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
    (folder / "model_final.pth").unlink()
    return folder


def forget_random_state() -> None:
    """Set the generators to what they are in a new process."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(random.SystemRandom().randrange(2**31))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_resumed_run_equals_the_straight_run(make_trainer, tmp_path, options):
    """In every bit: weights, averages, optimizer, losses in metrics.json; from a checkpoint with pending log lines."""
    straight = tmp_path / "straight"
    make_trainer(straight, *options).train()
    resumed = copy_interrupted(straight, 2)
    forget_random_state()
    make_trainer(resumed, *options, resume=True).train()
    for name in ("model_0000005.pth", "model_final.pth"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (straight, resumed))
        # Lengths of metrics.json contain the digits of times.
        for checkpoint in (a, b):
            checkpoint.get("trainer", {"hooks": {}})["hooks"].pop("ExactResume", None)
        assert not differences(a, b)
    metrics = read_metrics(resumed)
    assert [x["iteration"] for x in metrics] == [1, 3, 5]
    assert metrics == read_metrics(straight)


def test_evaluation_after_the_checkpoint_is_made_up_for(make_trainer, tmp_path, monkeypatch):
    """A run that is killed between the two continues with the best result that it would have had."""
    options = ("TEST.EVAL_PERIOD", 3, "TEST.BEST_METRIC", "bbox/AP")
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda cfg, model: {"bbox": {"AP": next(results)}}))
    results = iter((30.0, 20.0))
    make_trainer(tmp_path / "straight", *options).train()
    resumed = copy_interrupted(tmp_path / "straight", 2)
    (resumed / "model_best.pth").unlink()
    results = iter((30.0, 20.0))
    trainer = make_trainer(resumed, *options, resume=True)
    trainer.train()
    assert torch.load(resumed / "model_best.pth", weights_only=True)["iteration"] == 2
    assert read_metrics(resumed) == read_metrics(tmp_path / "straight")
    assert [x["bbox/AP"] for x in read_metrics(resumed) if "bbox/AP" in x] == [30.0, 20.0]


def test_checkpoint_that_does_not_tell_the_order(make_trainer, tmp_path, capsys):
    """Of an earlier version, or of a run with another batch size: it is resumed, with a warning."""
    run = tmp_path / "run"
    make_trainer(run, "SOLVER.MAX_ITER", 3).train()
    make_trainer(run, resume=True).train()
    assert "new order" not in capsys.readouterr().out
    make_trainer(copy_interrupted(run, 2), "SOLVER.IMS_PER_BATCH", 2, resume=True).train()
    assert "The images come in a new order" in capsys.readouterr().out
    checkpoint = torch.load(run / "model_0000002.pth", weights_only=True)
    del checkpoint["trainer"]["hooks"]["ExactResume"]
    torch.save(checkpoint, run / "model_0000002.pth")
    (run / "last_checkpoint").write_text("model_0000002.pth")
    trainer = make_trainer(run, "SOLVER.MAX_ITER", 4, resume=True)
    trainer.train()
    assert "earlier version of this package" in capsys.readouterr().out
    assert trainer.iter == 4
