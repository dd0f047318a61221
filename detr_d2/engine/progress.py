"""A progress bar instead of a log, where somebody watches."""

import logging
import sys

from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm


class ProgressBar(HookBase):
    """Shows on a terminal how far training is, its loss, and the AP of the last evaluation.

    The console then hears of warnings only; the log file keeps every line. Elsewhere it does nothing, and
    Detectron2's plain lines remain. Of several processes the first shows it.
    """

    def __init__(self, period: int = 10):
        """
        Args:
            period: iterations between two looks at the loss, which is that of the last step that was logged.
        """
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
