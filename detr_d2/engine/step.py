"""A training step in any precision, of a batch in one forward pass or several."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from detr_d2.engine.progressive import ProgressiveSize
from detr_d2.utils.seeding import STEP, seed_all


class TrainingStep(SimpleTrainer):
    """Detectron2's training step, with autocast, and with gradients that are accumulated over parts of the batch.

    Every loss is divided by the normalizer of the whole batch: the sums over the parts are those of one pass.

    Args:
        model: a :class:`~detr_d2.modeling.Detr`, perhaps distributed.
        data_loader: loader of this process's share of each batch.
        optimizer: optimizer of the model's parameters.
        dtype: data type of autocast; None: no autocast. float16 requires a CUDA GPU.
        accumulation_steps: number of forward passes that the share is split into, of one size except the last.
        log_period: number of steps whose losses are logged together; see :class:`LossLog`.
        progressive_size: makes images smaller in the first part of the training. None: images stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: Optimizer,
        *,
        dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
        log_period: int = 1,
        progressive_size: ProgressiveSize | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.dtype = dtype
        self.accumulation_steps = accumulation_steps
        self.loss_log = LossLog(log_period)
        # The exponents of bfloat16 are those of float32: its gradients don't vanish.
        self.scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        self.unwrapped_model = model.module if isinstance(model, DistributedDataParallel) else model
        self.progressive_size = progressive_size
        # Seed of the run, from which every step gets its random numbers; None: those follow from the step before.
        self.seed: int | None = None

    def end_loading(self) -> None:
        """End the processes that load images, for which a process that exits would wait some seconds."""
        self._data_loader_iter_obj = None

    def run_step(self) -> None:
        """Load a batch, compute its gradients, update the weights."""
        started = time.perf_counter()
        data = next(self._data_loader_iter)
        if self.progressive_size is not None:
            data = self.progressive_size(data, self.iter, self.unwrapped_model.device)
        data_time = time.perf_counter() - started
        if self.seed is not None:
            # A resumed run then needs no state of a generator, of any device and process. It takes 50 microseconds.
            seed_all(STEP, self.seed, self.iter, comm.get_rank())

        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        normalizer = self.unwrapped_model.normalizer(data, self.accumulation_steps)
        for inputs, context in self._split(data):
            with context:
                with self._autocast():
                    step_losses = self.model(inputs, normalizer=normalizer)
                self.scaler.scale(sum(step_losses.values())).backward()
            for name, loss in step_losses.items():
                losses[name] = losses[name] + loss.detach() if name in losses else loss.detach()
        self.after_backward()
        self.loss_log.add(self.iter, losses, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _split(self, data: list[dict]) -> Iterator[tuple[list[dict], AbstractContextManager]]:
        size = -(-len(data) // self.accumulation_steps)
        for start in range(0, len(data), size):
            is_last = start + size >= len(data)
            # Processes exchange gradients once, when each has accumulated its own.
            waits = isinstance(self.model, DistributedDataParallel) and not is_last
            yield data[start : start + size], self.model.no_sync() if waits else nullcontext()

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(self.unwrapped_model.device.type, self.dtype)

    def state_dict(self) -> dict:
        """Return the state that ``--resume`` loads, including that of the gradient scaler if it is enabled."""
        scaler = self.scaler.state_dict()
        return {**super().state_dict(), **({"grad_scaler": scaler} if scaler else {})}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state that :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])


class LossLog:
    """Log that buffers losses on the device and writes them to Detectron2's event storage every ``period`` steps.

    Reading a loss waits for the device, which then idles. Detectron2's ``gather_metric_period`` avoids that by leaving
    out the losses of all other steps; this reads the losses of every step, of several steps at once.
    """

    def __init__(self, period: int = 1):
        self.period = period
        self._steps: list[tuple[int, dict[str, Tensor], float]] = []

    def add(self, iteration: int, losses: dict[str, Tensor], data_time: float) -> None:
        """Buffer the losses of a step, scalars by name, and the seconds that it waited for its data.

        In the last step of each period, :meth:`write` them, with its errors.
        """
        self._steps.append((iteration, losses, data_time))
        if (iteration + 1) % self.period == 0:
            self.write()

    def write(self) -> None:
        """Write the buffered losses, averaged over the processes, which all call this.

        Raises:
            FloatingPointError: a loss is not finite; names the first iteration with one.
        """
        rows = self._read()
        steps, self._steps = self._steps, []
        for (iteration, losses, data_time), row in zip(steps, rows, strict=True):
            SimpleTrainer.write_metrics(dict(zip(losses, row, strict=True)), data_time, iteration)

    def first_bad_iteration(self) -> int | None:
        """Return the first iteration whose losses, in this process, are neither written nor finite."""
        rows = zip(self._steps, self._read(), strict=True)
        return next((step[0] for step, row in rows if not math.isfinite(sum(row))), None)

    def _read(self) -> list[list[Tensor]]:
        counts = [len(losses) for _, losses, _ in self._steps]
        values = [x.float() for _, losses, _ in self._steps for x in losses.values()]
        return [list(row) for row in torch.stack(values).cpu().split(counts)] if values else [[] for _ in counts]
