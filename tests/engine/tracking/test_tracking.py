"""Trackers in whole trainings: what they get, and that a resumed run continues them."""

import csv
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_d2.engine import Trainer
from detr_d2.engine.interruption import StopOnSignal
from detr_d2.engine.tracking import TRACKERS, Tracker
from detr_d2.utils.errors import UserError
from tests.engine.test_resuming import start_trainer
from tests.engine.tracking.stand_ins import Mlflow, Wandb

ALL = ("tensorboard", "csv", "wandb", "mlflow")


@pytest.fixture
def wandb(monkeypatch):
    """Put the stand-in in the place of the package."""
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """Put the stand-in in the place of the package."""
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
    return module


@pytest.fixture
def make_trainer(make_run_cfg, catalog, noise_records, monkeypatch):
    """Return a function that makes a trainer of six steps with an evaluation after three, whose AP is made up."""
    catalog("noise", noise_records, thing_classes=list("abcde"))
    aps = iter(range(10, 99))
    results = lambda *_: {"bbox": {"AP": next(aps), "AP-it's": math.nan}}  # noqa: E731
    monkeypatch.setattr(Trainer, "test", classmethod(results))

    def make(folder: Path, *options, resume: bool = False) -> Trainer:
        cfg = make_run_cfg(
            *(folder, "DATASETS.TEST", ("noise",), "INPUT.MIN_SIZE_TEST", 32, "TEST.EVAL_PERIOD", 3),
            *("SOLVER.CHECKPOINT_PERIOD", 2, *options),
        )
        return start_trainer(cfg, resume)

    return make


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder: Path) -> EventAccumulator:
    """Read all event files of a folder; every image and scalar is kept."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


STEPS = [1, 2, 3, 5, 6]
"""Of losses after every second step, the evaluation after the third, and the one after the last."""


def check_runs(folder: Path, wandb: Wandb, mlflow: Mlflow) -> None:
    """Check what all trackers hold of a complete run, against metrics.json: each step once."""
    lines = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    losses = [(x["iteration"], x["total_loss"]) for x in lines if "total_loss" in x]
    assert [i for i, _ in losses] == [1, 3, 5]
    aps = [(x["iteration"], x["bbox/AP"]) for x in lines if "bbox/AP" in x]
    assert [i for i, _ in aps] == [2, 6]

    rows = read_csv(folder)
    assert [int(x["iteration"]) for x in rows] == STEPS
    assert [(int(x["iteration"]), float(x["total_loss"])) for x in rows if x["total_loss"]] == losses
    assert [int(x["iteration"]) for x in rows if x["bbox/AP"]] == [2, 6]

    ((run_id, run),) = wandb.runs.items()
    assert [step for step, _ in run["rows"]] == STEPS
    assert [(step, x["total_loss"]) for step, x in run["rows"] if "total_loss" in x] == losses
    images = {"predictions/0": ("image", (40, 32, 3)), "predictions/1": ("image", (32, 48, 3))}
    for step, values in run["rows"]:
        assert {name: x for name, x in values.items() if name in images} == (images if step in (2, 6) else {})
    assert run["files"] == [(f"model_final-{run_id}", "model", [str(folder / "model_final.pth")])]

    (run,) = mlflow.runs.values()
    assert [(step, value) for step, name, value in run["metrics"] if name == "total_loss"] == losses
    assert [step for step, name, _ in run["metrics"] if name == "bbox/AP-it_s"] == [2, 6]
    assert run["images"] == [(step, name, shape) for step in (2, 6) for name, (_, shape) in images.items()]
    assert run["files"] == [str(folder / "model_final.pth")]

    events = read_events(folder)
    assert [(x.step, x.value) for x in events.Scalars("total_loss")] == [(i, pytest.approx(x)) for i, x in losses]
    assert [x.step for x in events.Scalars("bbox/AP")] == [2, 6]
    assert [x.step for x in events.Images("predictions/0")] == [2, 6]
    assert len(events.Tensors("config/text_summary")) == 1


def test_every_tracker_gets_everything_and_a_killed_run_goes_on(make_trainer, tmp_path, wandb, mlflow):
    """The run is killed after its fourth step, and continues from the checkpoint after its second."""
    folder = tmp_path / "run"
    options = ("LOGGING.TRACKERS", ALL, "LOGGING.IMAGES", 2, "LOGGING.ARTIFACTS", True, "LOGGING.PROJECT", "noises")
    trainer = make_trainer(folder, *options)
    killed = RuntimeError("killed")

    def stop_at_the_fifth_step():
        if trainer.iter == 4:
            raise killed
        Trainer.run_step(trainer)

    trainer.run_step, trainer.after_train = stop_at_the_fifth_step, lambda: None
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train()
    # A killed process leaves no handlers of signals behind; this one is that of all tests.
    (stop,) = (x for x in trainer._hooks if isinstance(x, StopOnSignal))
    stop.after_train()
    ((run_id, run),) = wandb.runs.items()
    assert (run["project"], run["name"], run["dir"], run["exit_codes"]) == ("noises", "run", str(folder), [1])
    assert run["config"]["SOLVER"]["MAX_ITER"] == 6
    assert not run["files"]
    ((mlflow_id, run),) = mlflow.runs.items()
    assert mlflow.experiments == {"noises": run["experiment"]}
    assert run["status"] == ["RUNNING", "FAILED"]
    assert (run["params"]["SOLVER.MAX_ITER"], run["config"]["SOLVER"]["MAX_ITER"]) == ("6", 6)

    (folder / "last_checkpoint").write_text("model_0000001.pth")
    with open(folder / "metrics.csv", "a") as file:
        file.write("4,0.")
    make_trainer(folder, *options, resume=True).train()
    check_runs(folder, wandb, mlflow)
    assert wandb.runs[run_id]["exit_codes"] == [1, 0]
    assert mlflow.runs[mlflow_id]["status"] == ["RUNNING", "FAILED", "RUNNING", "FINISHED"]

    # A second run in the folder, which is not resumed, is another run.
    shutil.copy(folder / "metrics.csv", tmp_path / "first.csv")
    make_trainer(folder, *options).train()
    assert len(wandb.runs) == len(mlflow.runs) == 2
    assert [int(x["iteration"]) for x in read_csv(folder)] == STEPS


def test_defaults_are_detectron2s_writers(make_trainer, tmp_path):
    """Event files and metrics.json, and nothing else: no images."""
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    assert list(trainer.tracking.trackers) == ["tensorboard"]
    events = read_events(tmp_path / "run")
    assert events.Tags()["images"] == []
    last = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-2])
    written = {name for name in events.Tags()["scalars"] if events.Scalars(name)[-1].step == last["iteration"]}
    assert written == set(last) - {"iteration"}
    assert not (tmp_path / "run" / "metrics.csv").exists()


class Broken(Tracker):
    fails_in = "open"
    calls = ()

    def _call(self, name):
        Broken.calls += (name,)
        if name == self.fails_in:
            raise (SystemExit if name == "end" else OSError)("no network")

    def open(self):
        self._call("open")

    def log(self, step, events):
        self._call("log")

    def log_file(self, path):
        self._call("log_file")

    def end(self, failed):
        self._call("end")


@pytest.mark.parametrize(
    ("fails_in", "calls"),
    [
        ("open", ("open",)),
        ("log", ("open", "log")),
        ("log_file", ("open", *["log"] * 5, "log_file")),
        ("end", ("open", *["log"] * 5, "log_file", "end")),
    ],
)
def test_a_tracker_that_fails_never_stops_a_training(make_trainer, tmp_path, monkeypatch, caplog, fails_in, calls):
    monkeypatch.setitem(TRACKERS, "broken", Broken)
    monkeypatch.setattr(Broken, "fails_in", fails_in)
    monkeypatch.setattr(Broken, "calls", ())
    logging.getLogger("detr_d2").propagate = True
    trainer = make_trainer(tmp_path / "run", "LOGGING.TRACKERS", ("broken", "csv"), "LOGGING.ARTIFACTS", True)
    logging.getLogger("detr_d2").propagate = True
    with caplog.at_level(logging.WARNING, "detr_d2.engine.tracking"):
        trainer.train()
    (message,) = [x.getMessage() for x in caplog.records if x.name.startswith("detr_d2.engine.tracking")]
    assert message.startswith("Broken failed, and the run goes on without it: ")
    assert message.endswith(": no network")
    assert Broken.calls == calls
    assert [int(x["iteration"]) for x in read_csv(tmp_path / "run")] == STEPS
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_images_that_cannot_be_drawn_never_stop_a_training(make_trainer, tmp_path, monkeypatch, caplog):
    trainer = make_trainer(tmp_path / "run", "LOGGING.TRACKERS", ("csv",), "LOGGING.IMAGES", 1)
    monkeypatch.setattr("detr_d2.engine.tracking.hook.draw_instances", lambda *_, **__: 1 / 0)
    logging.getLogger("detr_d2").propagate = True
    with caplog.at_level(logging.WARNING, "detr_d2.engine.tracking"):
        trainer.train()
    messages = [x.getMessage() for x in caplog.records if x.name.startswith("detr_d2.engine.tracking")]
    assert messages == ["No more images of predictions are drawn, after ZeroDivisionError: division by zero"]
    assert trainer.model.training


def test_refused_names_and_missing_packages(make_trainer, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"LOGGING.TRACKERS is 'neptune': choose one of csv, mlflow, tensorboard"):
        make_trainer(tmp_path / "run", "LOGGING.TRACKERS", ("csv", "neptune"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"LOGGING.TRACKERS wandb needs .*pip install 'detr_d2\[wandb\]'"):
        make_trainer(tmp_path / "run", "LOGGING.TRACKERS", ("wandb",))
