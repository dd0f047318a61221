"""Exact resume: a run that continues from any of its checkpoints ends as it ended without an interruption."""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks
from detectron2.utils import comm

from detr_d2.engine import Trainer, launch_processes
from detr_d2.engine.launching import lock_output

# What a clock measures.
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
AVERAGE = ("SOLVER.EMA.ENABLED", True)
MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8)
CASES = {
    "averaged, training-only parts": (
        *(*AVERAGE, "MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.DENSE_WEIGHT", 0.3),
    ),
    "workers, accumulation": ("DATALOADER.NUM_WORKERS", 2, "SOLVER.ACCUMULATE", 2),
    "bfloat16, colors": ("SOLVER.AMP.ENABLED", True, "INPUT.COLOR_JITTER", 0.4, "INPUT.AUGMENTATION", "light"),
    "masks, workers": (*MASKS, "DATALOADER.NUM_WORKERS", 2),
    "SMCA, trained norms, no groups by shape": (
        *("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
    ),
}


def start_trainer(cfg: CfgNode, resume: bool) -> Trainer:
    """Return a trainer that starts or resumes a run, and writes metrics.json every second iteration."""
    trainer = Trainer(cfg)
    for hook in trainer._hooks:
        if isinstance(hook, hooks.PeriodicWriter):
            hook._period = 2
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture
def make_trainer(make_run_cfg, catalog, noise_records):
    """Return a function that makes the trainer of a run in a folder."""
    catalog("noise", noise_records, thing_classes=list("abcde"))
    return lambda folder, *options, resume=False: start_trainer(make_run_cfg(folder, *options), resume)


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


def assert_equal_runs(straight: Path, resumed: Path) -> None:
    """Compare every bit of the last checkpoints and of metrics.json."""
    a, b = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (straight, resumed))
    if "trainer" not in a:
        # The averages only, beside which there is a checkpoint to resume from.
        name = f"model_{a['iteration']:07d}.pth"
        assert not differences(a, b)
        a, b = (torch.load(folder / name, weights_only=True) for folder in (straight, resumed))
    for checkpoint in (a, b):
        # Its length of metrics.json depends on the digits of times.
        del checkpoint["trainer"]["hooks"]["ExactResume"]
    assert not differences(a, b)
    metrics = read_metrics(resumed)
    assert [x["iteration"] for x in metrics] == list(range(1, a["iteration"] + 1, 2))
    assert metrics == read_metrics(straight)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_resumed_run_equals_the_straight_run(make_trainer, tmp_path, options):
    """Weights, averages, optimizer, losses; from a checkpoint between two lines of metrics.json."""
    straight = tmp_path / "straight"
    make_trainer(straight, *options).train()
    resumed = copy_interrupted(straight, 2)
    forget_random_state()
    make_trainer(resumed, *options, resume=True).train()
    assert_equal_runs(straight, resumed)


def test_workers_end_with_the_training(make_trainer, tmp_path):
    """A process that exits while they run would wait some seconds for each."""
    others = set(multiprocessing.active_children())
    trainer = make_trainer(tmp_path / "run", "DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 1)
    trainer.train()
    assert set(multiprocessing.active_children()) <= others


def test_killed_between_the_last_checkpoint_and_the_final_one(make_trainer, tmp_path):
    """No step is left, and the final checkpoint is written all the same."""
    straight = tmp_path / "straight"
    options = ("SOLVER.CHECKPOINT_PERIOD", 1)
    trainer = make_trainer(straight, *options)
    trainer.train()
    resumed = copy_interrupted(straight, trainer.max_iter - 1)
    make_trainer(resumed, *options, resume=True).train()
    assert_equal_runs(straight, resumed)


def train_twice(args: argparse.Namespace) -> None:
    """Train a straight run and a resumed one, in each of several processes."""
    torch.set_num_threads(1)
    DatasetCatalog.register("noise", lambda: args.records)
    MetadataCatalog.get("noise").thing_classes = list("abcde")
    start_trainer(args.straight, resume=False).train()
    if comm.is_main_process():
        copy_interrupted(Path(args.straight.OUTPUT_DIR), 2)
    comm.synchronize()
    forget_random_state()
    start_trainer(args.resumed, resume=True).train()


@pytest.mark.slow
def test_two_processes_resume_exactly(make_run_cfg, noise_records, tmp_path):
    options = ("SOLVER.EMA.ENABLED", True, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
    cfg = make_run_cfg(tmp_path / "straight", *options)
    resumed = cfg.clone()
    resumed.OUTPUT_DIR = str(tmp_path / "straight_after_2")
    processes = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    launch_processes(train_twice, argparse.Namespace(**processes, straight=cfg, resumed=resumed, records=noise_records))
    assert_equal_runs(tmp_path / "straight", tmp_path / "straight_after_2")


def train_attempt(cfg: CfgNode, records: list[dict]) -> None:
    """Start or resume a run in a process of its own, as the command does."""
    torch.set_num_threads(1)
    DatasetCatalog.register("noise", lambda: records)
    MetadataCatalog.get("noise").thing_classes = list("abcde")
    lock_output(Path(cfg.OUTPUT_DIR))
    start_trainer(cfg, resume=True).train()


@pytest.mark.slow
def test_killed_at_random_moments(make_run_cfg, noise_records, tmp_path):
    """DETR_D2_KILLS sets how often. Nothing is damaged or left behind, and the run ends like one without kills."""
    kills = int(os.environ.get("DETR_D2_KILLS", 3))
    options = ("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_KEPT", 3, "SOLVER.MAX_ITER", 10 + kills + kills % 2)
    # Its server imports everything once, and starts no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detr_d2.engine"])
    rng = random.Random(0)

    def start(folder: str) -> multiprocessing.Process:
        process = context.Process(target=train_attempt, args=(make_run_cfg(tmp_path / folder, *options), noise_records))
        process.start()
        return process

    straight = start("straight")
    straight.join()
    run = tmp_path / "run"
    ended = left = 0
    while ended < kills:
        attempt = start("run")
        # From the start of the process to some iterations later, often while a checkpoint is written.
        steps = len(list(run.glob("model_*.pth")))
        attempt.join(rng.uniform(0.5, 1.5))
        while attempt.is_alive() and steps and not list(run.glob("*.tmp")) and rng.random() < 0.98:
            time.sleep(0.01)
        if not attempt.is_alive():
            break
        os.kill(attempt.pid, rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        attempt.join()
        ended += 1
        left += len(list(run.glob("*.tmp")))
        for file in run.glob("model_*.pth"):
            assert torch.load(file, weights_only=True)["model"]
    last = start("run")
    last.join()
    sys.stdout.write(f"{ended} kills, of which {left} left a file half-written\n")
    assert straight.exitcode == last.exitcode == 0
    assert_equal_runs(tmp_path / "straight", run)
    names = [{x.name for x in folder.iterdir() if "tfevents" not in x.name} for folder in (tmp_path / "straight", run)]
    assert names[0] == names[1]


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


def test_latest_checkpoints_are_kept(make_trainer, tmp_path):
    """Of all attempts of a run together, with those that a signal left."""
    options = ("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_KEPT", 2)
    run = tmp_path / "run"
    make_trainer(run, *options, "SOLVER.MAX_ITER", 3).train()
    for name in ("model_0000000.pth", "model_9999999.pth"):
        (run / name).touch()
    make_trainer(run, *options, "SOLVER.MAX_ITER", 4, resume=True).train()
    found = sorted(x.name for x in run.glob("model_*.pth"))
    assert found == ["model_0000002.pth", "model_0000003.pth", "model_9999999.pth", "model_final.pth"]
