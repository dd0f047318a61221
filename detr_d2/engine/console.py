"""Progress of training on a terminal: log lines with the auxiliary losses summed, and a progress bar."""

import logging
import re
import sys

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer
from tqdm import tqdm

# The losses of decoder layers before the last, as the criterion names them.
_AUXILIARY = re.compile(r"loss_\w+_\d+")


class FoldedMetricPrinter(CommonMetricPrinter):
    """Detectron2's log lines, with the sum ``loss_aux`` for the losses of all decoder layers except the last."""

    def write(self) -> None:
        """Write one line."""
        with _Folded(get_event_storage(), self._window_size):
            super().write()


class _Folded(EventStorage):
    """A view of ``storage`` for the printer: the auxiliary losses appear as one."""

    def __init__(self, storage: EventStorage, window_size: int):
        self.__dict__.update(storage.__dict__)
        self._storage = storage
        self._history = fold_auxiliary(storage.histories(), window_size)

    def put_scalar(self, *args, **kwargs) -> None:
        self._storage.put_scalar(*args, **kwargs)


def fold_auxiliary(histories: dict[str, HistoryBuffer], window_size: int) -> dict[str, HistoryBuffer]:
    """Replace the auxiliary losses in ``histories`` by their sum, over the last ``window_size`` iterations."""
    auxiliary = {name: history for name, history in histories.items() if _AUXILIARY.fullmatch(name)}
    folded = {name: history for name, history in histories.items() if name not in auxiliary}
    if auxiliary:
        folded["loss_aux"] = total = HistoryBuffer()
        for values in zip(*(history.values()[-window_size:] for history in auxiliary.values()), strict=False):
            total.update(sum(value for value, _ in values), values[0][1])
    return folded


class ProgressBar(HookBase):
    """Progress, loss and the AP of the last evaluation on a terminal.

    The console then shows only warnings; the log file keeps every line. Without a terminal this does nothing, and
    Detectron2's plain lines remain. If there are several processes, the first one shows it. Every ``period`` iterations
    the loss is updated to that of the last step that was logged.
    """

    def __init__(self, period: int = 10):
        self.period = period
        self.bar = None

    def before_train(self) -> None:
        if not (comm.is_main_process() and sys.stderr.isatty()):
            return
        _quiet_console()
        self.bar = tqdm(
            total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="training", unit="it", dynamic_ncols=True
        )

    def after_step(self) -> None:
        if self.bar is None:
            return
        self.bar.update()
        if (self.trainer.iter + 1) % self.period == 0:
            latest = self.trainer.storage.latest()
            shown = {"loss": "total_loss", "AP": "bbox/AP", "AP50": "bbox/AP50"}
            self.bar.set_postfix({name: f"{latest[key][0]:.1f}" for name, key in shown.items() if key in latest})

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _quiet_console() -> None:
    for name in ("detectron2", "detr_d2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            # A file's handler is a stream's handler too.
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
