"""Log lines and the progress bar of training."""

import io
import json
import logging
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter

from detr_d2.engine.console import FoldedMetricPrinter, ProgressBar


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


def train(hook, trainer):
    hook.trainer = trainer
    hook.before_train()
    for iteration in range(trainer.max_iter):
        trainer.iter = iteration
        hook.after_step()
    hook.after_train()


def test_a_terminal_shows_a_bar_and_only_warnings(monkeypatch, trainer):
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger("detr_d2"), "handlers", [handler])
    monkeypatch.setattr(sys, "stderr", Terminal())
    train(ProgressBar(), trainer)
    shown = sys.stderr.getvalue()
    assert "20/20" in shown
    assert "loss=3.2" in shown
    assert "AP=12.5" in shown
    assert handler.level == logging.WARNING


def test_no_bar_without_a_terminal(monkeypatch, trainer):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    train(ProgressBar(), trainer)
    assert sys.stderr.getvalue() == ""
