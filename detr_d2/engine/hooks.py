"""Hooks of the trainer: averaged weights, the best checkpoint, and early stopping."""

import logging

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """Exponential moving average of the weights and the buffers, which is what is evaluated and saved as the model.

    The decay grows from 0.1 to ``decay`` with the iterations, as (1 + i) / (10 + i), so that early weights fade soon.

    Args:
        model: a Detr, without a data-parallel wrapper.
        decay: share of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.averaged = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        self.averaged.module.requires_grad_(False)

    def after_step(self) -> None:
        self.averaged.update_parameters(self.model)

    def _update(self, averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        iteration = self.trainer.iter
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + iteration) / (10 + iteration)))

    def state_dict(self) -> dict:
        """Return the weights that are trained; the averages are the checkpoint's model."""
        return {"weights": self.model.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the trained weights, after the averages have been loaded as the model."""
        self.averaged.module.load_state_dict(self.model.state_dict())
        self.averaged.n_averaged.fill_(1)
        self.model.load_state_dict(state_dict["weights"])


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's hook for every process, which restores the best metric of a resumed run.

    With ``patience`` it stops the training, in all processes together, after this many consecutive evaluations without
    improvement.
    """

    def __init__(self, period: int, checkpointer, metric: str, patience: int = 0):
        super().__init__(period, checkpointer, metric)
        self.patience = patience
        self.worse = 0

    def _best_checking(self) -> None:
        best = self.best_iter
        if comm.is_main_process():
            super()._best_checking()
        self.worse = 0 if self.best_iter != best else self.worse + 1
        stop = self.patience > 0 and self.worse >= self.patience
        if comm.get_world_size() > 1:
            stop = comm.all_gather(stop)[0]
        if stop:
            logger.info(
                f"{self._val_metric} has not been better than {self.best_metric} for {self.patience} evaluations."
            )
            self.trainer.stop()

    def state_dict(self) -> dict:
        """Return the best metric so far, and for how many evaluations it has stood."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter, "worse": self.worse}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
        self.worse = state_dict["worse"]
