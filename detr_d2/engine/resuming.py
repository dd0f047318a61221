"""Exact resume: the random numbers, the order of images and the logs of a run go on as if it was never interrupted."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage, JSONWriter

from detr_d2.data.training_loader import TrainingLoader, choose_seed

logger = logging.getLogger(__name__)

# Iterations that Detectron2's writers take the median of.
_WINDOW = 20
# What follows the checkpoint in an iteration, in this order.
_AFTER_CHECKPOINT = (hooks.EvalHook, hooks.BestCheckpointer, hooks.PeriodicWriter)


class ExactResume(HookBase):
    """Hook that starts the loader and the random numbers of a run where its checkpoint ends.

    Its state is the seed of the run, which is a random one if ``seed`` is negative, and what the writers still need:
    the values of the last iterations and the length of metrics.json. Register it after all hooks in which a run may be
    interrupted.
    """

    def __init__(self, seed: int):
        self.seed = choose_seed(seed)
        self._state: dict[str, Any] = {}

    def state_dict(self) -> dict:
        """Return the seed, what the order of images depends on, and the state of the writers."""
        metrics = {}
        for writer in self._metrics_files():
            metrics = {"bytes": os.path.getsize(writer._file_handle.name), "iteration": writer._last_write}
        return {"seed": self.seed, **self._data(), "scalars": recent_scalars(self.trainer.storage), "metrics": metrics}

    def load_state_dict(self, state_dict: dict) -> None:
        """Keep what :meth:`state_dict` returned until the training starts."""
        self._state = state_dict

    def before_train(self) -> None:
        """Start the loader and the random numbers; in a resumed run, end the iteration that was interrupted."""
        trainer, state = self.trainer, self._state
        self.seed = state.get("seed", self.seed)
        trainer._trainer.seed = self.seed
        loader = trainer._trainer.data_loader
        if isinstance(loader, TrainingLoader):
            loader.start(trainer.start_iter, self.seed)
        if trainer.start_iter and {x: state.get(x) for x in self._data()} != self._data():
            logger.warning(
                "The images come in a new order, since the checkpoint does not tell the order so far: it is of an "
                "earlier version of this package, or of a run with another SOLVER.IMS_PER_BATCH or dataset."
            )
        for hook in trainer._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer) and hook.max_to_keep and trainer.start_iter:
                keep_latest(hook, trainer.start_iter - 1)
        if not state:
            return
        restore_scalars(trainer.storage, state["scalars"])
        for writer in self._metrics_files():
            rewind(writer, state["metrics"])
        # The checkpoint was written before the evaluation and the log of its iteration.
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        for hook in trainer._hooks:
            if isinstance(hook, _AFTER_CHECKPOINT):
                hook.after_step()

    def _data(self) -> dict[str, int]:
        loader = self.trainer._trainer.data_loader
        if not isinstance(loader, TrainingLoader):
            return {}
        return {"batch_size": loader.batch_size, "num_images": loader.num_images}

    def _metrics_files(self) -> Iterator[JSONWriter]:
        for hook in self.trainer._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                yield from (x for x in hook._writers if isinstance(x, JSONWriter))


def recent_scalars(storage: EventStorage) -> dict[str, dict]:
    """Return, for each scalar, the values of its last iterations, which writers take the median of."""
    scalars = {}
    for name, history in storage.histories().items():
        if name == "time":
            # A process does not measure its first steps: the old value would be logged again.
            continue
        values = history.values()[-storage.count_samples(name, _WINDOW) :]
        scalars[name] = {"values": [tuple(x) for x in values], "smoothed": storage.smoothing_hints()[name]}
    return scalars


def restore_scalars(storage: EventStorage, scalars: dict[str, dict]) -> None:
    """Put what :func:`recent_scalars` returned into another storage."""
    for name, scalar in scalars.items():
        for value, iteration in scalar["values"]:
            storage.put_scalar(name, value, smoothing_hint=scalar["smoothed"], cur_iter=iteration)


def keep_latest(hook: hooks.PeriodicCheckpointer, iteration: int) -> None:
    """Remove all but the latest checkpoints of earlier runs up to an iteration, and let ``hook`` remove those later."""
    last = Path(hook.checkpointer.save_dir, f"model_{iteration:07d}.pth")
    files = sorted(str(x) for x in last.parent.glob("model_[0-9]*.pth") if x.name <= last.name)
    hook.recent_checkpoints = files[-hook.max_to_keep :]
    for file in files[: -hook.max_to_keep]:
        os.remove(file)


def rewind(writer: JSONWriter, metrics: dict[str, int]) -> None:
    """Drop the lines that were written after the checkpoint: those iterations are computed again."""
    if not metrics:
        return
    with open(writer._file_handle.name, "rb+") as file:
        # A file that is shorter was moved away or edited.
        if file.seek(0, os.SEEK_END) >= metrics["bytes"]:
            file.truncate(metrics["bytes"])
    writer._last_write = metrics["iteration"]
