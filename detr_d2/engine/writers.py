"""What the log shows of training."""

import re

from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer

# The losses of decoder layers before the last, by the names that the criterion gives them.
_AUXILIARY = re.compile(r"loss_\w+_\d+")


class FoldedMetricPrinter(CommonMetricPrinter):
    """Detectron2's log lines, with the sum ``loss_aux`` for the losses of all decoder layers but the last."""

    def write(self) -> None:
        with _Folded(get_event_storage(), self._window_size):
            super().write()


class _Folded(EventStorage):
    """What the printer reads: the auxiliary losses appear as one, all else is ``storage``'s own."""

    def __init__(self, storage: EventStorage, window_size: int):
        self.__dict__.update(storage.__dict__)
        self._storage = storage
        self._history = fold_auxiliary(storage.histories(), window_size)

    def put_scalar(self, *args, **kwargs) -> None:
        self._storage.put_scalar(*args, **kwargs)


def fold_auxiliary(histories: dict[str, HistoryBuffer], window_size: int) -> dict[str, HistoryBuffer]:
    """``histories`` with the sum of the auxiliary losses, of the last ``window_size`` iterations, in their place."""
    auxiliary = {name: history for name, history in histories.items() if _AUXILIARY.fullmatch(name)}
    folded = {name: history for name, history in histories.items() if name not in auxiliary}
    if auxiliary:
        folded["loss_aux"] = total = HistoryBuffer()
        for values in zip(*(history.values()[-window_size:] for history in auxiliary.values()), strict=False):
            total.update(sum(value for value, _ in values), values[0][1])
    return folded
