"""Training and evaluation."""

from detr_d2.engine.cli import run
from detr_d2.engine.optimizer import build_optimizer
from detr_d2.engine.setup import load_config, setup
from detr_d2.engine.trainer import Trainer, class_names, loading_options

__all__ = ["Trainer", "build_optimizer", "class_names", "load_config", "loading_options", "run", "setup"]
