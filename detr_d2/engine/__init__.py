"""Training and evaluation."""

from detr_d2.config.loading import load_config
from detr_d2.engine.launching import run
from detr_d2.engine.optimizer import build_optimizer
from detr_d2.engine.own_data import add_data_arguments, use_own_data
from detr_d2.engine.console import ProgressBar
from detr_d2.engine.setup import setup
from detr_d2.engine.trainer import Trainer, class_names, loading_options
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.utils.allocator import keep_freed_memory

__all__ = [
    "Predictor",
    "ProgressBar",
    "Trainer",
    "add_data_arguments",
    "build_optimizer",
    "class_names",
    "keep_freed_memory",
    "load_config",
    "loading_options",
    "prediction_config",
    "run",
    "setup",
    "use_own_data",
]
