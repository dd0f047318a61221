"""Log lines and the progress bar of training."""

import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter

from detr_d2.engine.console import FoldedMetricPrinter, ProgressBar, evaluate_dataset
from detr_d2.utils.progress import progress_bar


@pytest.fixture
def log_lines(caplog):
    """Return a function that trains for some iterations and returns the lines of a printer, and the storage."""

    def run(printer: CommonMetricPrinter, iterations: int = 3, **losses: float) -> tuple[list[str], EventStorage]:
        with caplog.at_level(logging.INFO, "detectron2.utils.events"), EventStorage(0) as storage:
            for i in range(iterations):
                storage.iter = i
                storage.put_scalars(time=0.5, **{name: value + i for name, value in losses.items()})
                storage.put_scalars(lr=1e-4, smoothing_hint=False)
            printer.logger.propagate = True
            printer.write()
        return [record.getMessage() for record in caplog.records], storage

    return run


LOSSES = {"total_loss": 60.0, "loss_ce": 1.0, "loss_bbox": 2.0, "loss_ce_0": 10.0, "loss_bbox_0": 20.0, "loss_ce_1": 30}


def test_the_log_folds_auxiliary_losses(log_lines):
    (line,), _ = log_lines(FoldedMetricPrinter(10), **LOSSES)
    # Medians of three iterations, at which every loss was one higher than before.
    assert "total_loss: 61  loss_ce: 2  loss_bbox: 3  loss_aux: 63" in line
    assert "loss_ce_0" not in line
    assert "eta: 0:00:03  iter: 2" in line
    assert "lr: 0.0001" in line


def test_without_auxiliary_losses_the_line_is_detectron2s(log_lines):
    (ours,), _ = log_lines(FoldedMetricPrinter(10), total_loss=3.0, loss_ce=1.0)
    assert "loss_aux" not in ours
    both, _ = log_lines(CommonMetricPrinter(10), total_loss=3.0, loss_ce=1.0)
    assert both == [ours, ours]


def test_the_other_writers_keep_every_loss(log_lines, tmp_path):
    _, storage = log_lines(FoldedMetricPrinter(10), **LOSSES)
    with storage:
        writer = JSONWriter(str(tmp_path / "metrics.json"))
        writer.write()
        writer.close()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert set(record) == {*LOSSES, "time", "lr", "iteration", "eta_seconds"}
    assert record["loss_ce_1"] == 31


def test_the_window_is_the_last_iterations(log_lines):
    """After a hundred iterations, the median of the last 20 sums, as Detectron2 logs it for each loss."""
    (line,), _ = log_lines(FoldedMetricPrinter(1000), iterations=100, loss_ce_0=0.0, loss_ce_1=0.0)
    (plain,) = log_lines(CommonMetricPrinter(1000), iterations=100, loss_ce_0=0.0, loss_ce_1=0.0)[0][1:]
    median = float(plain.split("loss_ce_0: ")[1].split()[0])
    assert f"loss_aux: {2 * median:.4g} " in line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def trainer():
    latest = {"total_loss": (3.25, 9), "bbox/AP": (12.5, 9)}
    return SimpleNamespace(max_iter=20, start_iter=0, iter=0, storage=SimpleNamespace(latest=lambda: latest))


@pytest.fixture
def log_file():
    """Return the content of log.txt, to which Detectron2 writes with the same kind of handler as to the console."""
    return io.StringIO()


@pytest.fixture
def console(monkeypatch, log_file):
    """Return a function that replaces standard output, on which the log is printed, and error, and returns the two."""

    def replace(stdout: io.StringIO, stderr: io.StringIO) -> tuple[io.StringIO, io.StringIO]:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        for name in ("detr_d2", "detectron2"):
            handlers = [logging.StreamHandler(stdout), logging.StreamHandler(log_file)]
            monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
            logging.getLogger(name).setLevel(logging.INFO)
        return stdout, stderr

    return replace


def train(hook, trainer):
    """Train as Detectron2's trainer does, with a line of progress, one of results and a warning, and a line after."""
    hook.trainer = trainer
    hook.before_train()
    for iteration in range(trainer.max_iter):
        trainer.iter = iteration
        hook.after_step()
    trainer.storage.latest()["segm/AP"] = (7.25, 20)
    logging.getLogger("detectron2.utils.events").info("iter: 19")
    logging.getLogger("detr_d2.evaluation").info("AP is 12.5")
    logging.getLogger("detr_d2.engine").warning("beware")
    hook.after_train()
    logging.getLogger("detectron2.utils.events").info("after")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_a_bar_in_the_place_of_lines_of_progress(console, log_file, trainer, quiet):
    log, bar = console(Terminal(), Terminal())
    train(ProgressBar(quiet=quiet), trainer)
    assert "training: 100%" in bar.getvalue()
    assert "20/20 [" in bar.getvalue()
    assert "ETA 00:" in bar.getvalue()
    assert "loss=3.25, AP=12.5]" in bar.getvalue()
    assert "loss=3.25, AP=12.5, mask AP=7.25]" in bar.getvalue()
    lines = re.sub(r"\r *\r", "", log.getvalue()).split("\n")
    assert lines == [*([] if quiet else ["AP is 12.5"]), "beware", "after", ""]
    assert log_file.getvalue().split("\n") == ["iter: 19", "AP is 12.5", "beware", "after", ""]


@pytest.mark.parametrize("streams", [(Terminal, io.StringIO), (io.StringIO, Terminal)])
def test_no_bar_and_every_line_without_a_terminal(console, trainer, streams):
    """Standard output may be a file or a pipe, which keeps all lines."""
    log, bar = console(*(x() for x in streams))
    train(ProgressBar(), trainer)
    assert bar.getvalue() == ""
    assert log.getvalue().split("\n") == ["iter: 19", "AP is 12.5", "beware", "after", ""]


def test_only_the_first_process_shows_bars(console, monkeypatch, trainer):
    _, bar = console(Terminal(), Terminal())
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    train(ProgressBar(), trainer)
    assert list(progress_bar(range(3), "counting", unit="number")) == [0, 1, 2]
    assert bar.getvalue() == ""


class Counter(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(outputs)

    def evaluate(self):
        return {"bbox": {"AP": float(self.count)}}


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_an_evaluation_shows_its_progress(console, monkeypatch, stream):
    """The results are in the log all the same."""
    log, bar = console(Terminal(), stream())
    # Detectron2 logs a line of progress if it has not for five seconds.
    monkeypatch.setattr("detectron2.utils.logger._LOG_TIMER", {})
    batches = [[torch.zeros(1)] * 2] * 12
    results = evaluate_dataset(torch.nn.Identity(), batches, Counter(), "photos")
    assert results == {"bbox": {"AP": 24.0}}
    assert "Evaluation results for photos in csv format:" in log.getvalue()
    assert "copypaste: 24.0000" in log.getvalue()
    shown = stream is Terminal
    assert ("evaluating photos: " in bar.getvalue()) is shown
    assert ("/12 [" in bar.getvalue()) is shown
    assert ("Inference done 11/12" in log.getvalue()) is not shown
