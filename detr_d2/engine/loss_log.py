"""Losses on their way to the log."""

import math

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor


class LossLog:
    """Keeps the losses of some steps where they were computed, and hands them to Detectron2's event storage together.

    Reading one waits until the device has done all it was told, which then idles until it is told more.
    """

    def __init__(self, period: int = 1):
        """
        Args:
            period: steps whose losses are read at once.
        """
        self.period = period
        self._steps: list[tuple[int, dict[str, Tensor], float]] = []

    def add(self, iteration: int, losses: dict[str, Tensor], data_time: float) -> None:
        """
        Args:
            losses: scalars by name, on any device.
            data_time: seconds for which the step waited for its data.

        Raises:
            FloatingPointError: as :meth:`write`, in the last step of each period.
        """
        self._steps.append((iteration, losses, data_time))
        if (iteration + 1) % self.period == 0:
            self.write()

    def write(self) -> None:
        """Write what there is, averaged over the processes, all of which call this.

        Raises:
            FloatingPointError: a loss is not finite; names the first iteration with one.
        """
        rows = self._read()
        steps, self._steps = self._steps, []
        for (iteration, losses, data_time), row in zip(steps, rows, strict=True):
            SimpleTrainer.write_metrics(dict(zip(losses, row, strict=True)), data_time, iteration)

    def first_bad_iteration(self) -> int | None:
        """The first whose losses, in this process, are neither written nor finite."""
        rows = zip(self._steps, self._read(), strict=True)
        return next((step[0] for step, row in rows if not math.isfinite(sum(row))), None)

    def _read(self) -> list[list[Tensor]]:
        counts = [len(losses) for _, losses, _ in self._steps]
        values = [x.float() for _, losses, _ in self._steps for x in losses.values()]
        return [list(row) for row in torch.stack(values).cpu().split(counts)] if values else [[] for _ in counts]
