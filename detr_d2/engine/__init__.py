"""Training and evaluation."""

import pkgutil
import warnings

from detr_d2.config import load_config
from detr_d2.engine.console import ProgressBar
from detr_d2.engine.launching import launch_processes, setup
from detr_d2.engine.optimizer import build_optimizer
from detr_d2.engine.own_data import use_own_data
from detr_d2.engine.trainer import Trainer, class_names, loading_options
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.utils.allocator import keep_freed_memory

__all__ = [
    "Predictor",
    "ProgressBar",
    "Trainer",
    "build_optimizer",
    "class_names",
    "keep_freed_memory",
    "launch_processes",
    "load_config",
    "loading_options",
    "prediction_config",
    "setup",
    "use_own_data",
]

# Names that copies of an earlier train_net.py import from here.
_MOVED = {"add_data_arguments": "detr_d2.cli.arguments.add_data_arguments", "run": "detr_d2.cli.command.launch"}


def __getattr__(name: str):
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"detr_d2.engine.{name} is now {_MOVED[name]}: import it from there."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return pkgutil.resolve_name(_MOVED[name])
