"""A training step in any precision, of a batch in one piece or in several."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from detr_d2.engine.loss_log import LossLog


class TrainingStep(SimpleTrainer):
    """Detectron2's training step, with autocast, and with the batch in ``parts`` whose gradients are added up.

    The losses of the parts are divided by what those of the whole batch would be: the sums are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: Optimizer,
        *,
        dtype: torch.dtype | None = None,
        parts: int = 1,
        log_period: int = 1,
    ):
        """
        Args:
            model: a :class:`~detr_d2.modeling.meta_arch.Detr`, maybe distributed.
            dtype: what autocast computes the network in; None: without. float16 takes a CUDA GPU.
            parts: that this process's share of the batch is taken in; of one size, but for the last.
            log_period: steps whose losses are logged together; see :class:`LossLog`.
        """
        super().__init__(model, data_loader, optimizer)
        self.dtype = dtype
        self.parts = parts
        self.loss_log = LossLog(log_period)
        # The exponents of bfloat16 are those of float32: its gradients don't vanish.
        self.scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None
        self.detr = model.module if isinstance(model, DistributedDataParallel) else model

    def run_step(self) -> None:
        started = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - started

        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        with self.detr.criterion.of_batch([len(x["instances"]) for x in data if "instances" in x], self.parts):
            for part, context in self._split(data):
                with context:
                    for name, loss in self._backward(part).items():
                        losses[name] = losses[name] + loss if name in losses else loss
        self.after_backward()
        self.loss_log.add(self.iter, losses, data_time)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _split(self, data: list[dict]) -> Iterator[tuple[list[dict], AbstractContextManager]]:
        size = -(-len(data) // self.parts)
        for start in range(0, len(data), size):
            is_last = start + size >= len(data)
            # Processes exchange gradients once, when they have all of their own.
            waits = isinstance(self.model, DistributedDataParallel) and not is_last
            yield data[start : start + size], self.model.no_sync() if waits else nullcontext()

    def _backward(self, part: list[dict]) -> dict[str, Tensor]:
        device = self.detr.device.type
        with torch.autocast(device, self.dtype) if self.dtype is not None else nullcontext():
            losses = self.model(part)
        total = sum(losses.values())
        (total if self.scaler is None else self.scaler.scale(total)).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict:
        state = super().state_dict()
        if self.scaler is not None:
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.scaler is not None and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
