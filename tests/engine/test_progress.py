"""The progress bar of training."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest

from detr_d2.engine import ProgressBar


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


def test_a_terminal_sees_a_bar_and_warnings_only(monkeypatch, trainer):
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger("detr_d2"), "handlers", [handler])
    monkeypatch.setattr(sys, "stderr", Terminal())
    train(ProgressBar(), trainer)
    shown = sys.stderr.getvalue()
    assert "20/20" in shown
    assert "loss=3.2" in shown
    assert "AP=12.5" in shown
    assert handler.level == logging.WARNING


def test_a_log_sees_nothing(monkeypatch, trainer):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    train(ProgressBar(), trainer)
    assert sys.stderr.getvalue() == ""
