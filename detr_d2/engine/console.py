"""Progress of training and evaluation: log lines with the auxiliary losses summed, and bars on a terminal."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from detr_d2.utils.progress import progress_bar

logger = logging.getLogger(__name__)

# What the bar of a training shows: Detectron2's names of metrics.
_SHOWN = {
    "loss": "total_loss",
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "mask AP": "segm/AP",
    "PQ": "panoptic_seg/PQ",
}
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
    """Progress, ETA, loss and the AP of the last evaluation on a terminal, in the place of the periodic log lines.

    The log file keeps every line. If standard output or standard error is no terminal, this does nothing, and
    Detectron2's plain lines remain. If there are several processes, the first one shows it.

    Args:
        period: number of iterations after which the loss is updated, to that of the last step that was logged.
        quiet: True to show only warnings beside the bar.
    """

    def __init__(self, period: int = 10, quiet: bool = False):
        self.period = period
        self.quiet = quiet
        self.bar = None
        self._console = ExitStack()

    def before_train(self) -> None:
        if not (comm.is_main_process() and is_on_terminal()):
            return
        self._console.enter_context(console_beside_bar(self.quiet))
        self.bar = progress_bar(
            description="training", total=self.trainer.max_iter, initial=self.trainer.start_iter, unit="it"
        )

    def after_step(self) -> None:
        if self.bar is None:
            return
        self.bar.update()
        if (self.trainer.iter + 1) % self.period == 0:
            self._show_metrics()

    def after_train(self) -> None:
        if self.bar is not None:
            # The last evaluation came after the last step.
            self._show_metrics()
            self.bar.close()
        self._console.close()

    def _show_metrics(self) -> None:
        latest = self.trainer.storage.latest()
        self.bar.set_postfix({name: f"{latest[key][0]:.3g}" for name, key in _SHOWN.items() if key in latest})


def is_on_terminal() -> bool:
    """Check whether the log and a progress bar are shown on a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def console_beside_bar(quiet: bool = False) -> Iterator[None]:
    """Print log lines above progress bars in this block, except those that a bar replaces; ``quiet``: only warnings."""
    replaced = []
    for logger in map(logging.getLogger, ("detectron2", "detr_d2", "fvcore")):
        for i, handler in enumerate(logger.handlers):
            # Detectron2's handler of log.txt is a StreamHandler, too.
            if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.stderr):
                replaced.append((logger, i, handler))
                logger.handlers[i] = _BesideBar(handler, quiet)
    try:
        yield
    finally:
        for logger, i, handler in replaced:
            logger.handlers[i] = handler


class _BesideBar(logging.StreamHandler):
    """Handler in the place of the one of the console."""

    def __init__(self, handler: logging.StreamHandler, quiet: bool):
        super().__init__(handler.stream)
        self.setFormatter(handler.formatter)
        self.setLevel(max(handler.level, logging.WARNING) if quiet else handler.level)

    def emit(self, record: logging.LogRecord) -> None:
        is_progress = record.name == "detectron2.utils.events" or record.getMessage().startswith("Inference done")
        if not is_progress or record.levelno >= logging.WARNING:
            tqdm.write(self.format(record), file=self.stream)


def evaluate_dataset(model: nn.Module, loader: DataLoader, evaluator: DatasetEvaluator, name: str) -> dict:
    """Evaluate a model on a dataset, with progress on a terminal, and return the metrics in the first process."""
    shown = is_on_terminal()
    with console_beside_bar() if shown else nullcontext():
        batches = progress_bar(loader, f"evaluating {name}", unit="batch", keep=False, shown=shown)
        results = inference_on_dataset(model, batches, evaluator)
        if comm.is_main_process():
            logger.info(f"Evaluation results for {name} in csv format:")
            print_csv_format(results)
    return results
