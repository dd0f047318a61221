"""Progress bars, all in one style, on terminals alone."""

from collections.abc import Iterable

from detectron2.utils import comm
from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, ETA {remaining}, {rate_fmt}{postfix}]"


def progress_bar(
    iterable: Iterable | None = None,
    description: str = "",
    *,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    keep: bool = True,
    shown: bool | None = None,
) -> tqdm:
    """Return a bar on standard error, over the items of ``iterable`` or to be updated by the caller.

    Args:
        description: what is done, or to what.
        unit: an item, in the singular.
        total: number of items; None: ``len(iterable)`` if it has one.
        initial: number of items that are done already.
        keep: True to leave the bar on the terminal when it is complete.
        shown: False for no bar; None: if standard error is a terminal. Of several processes, only the first shows one.
    """
    is_disabled = True if shown is False or not comm.is_main_process() else None
    return tqdm(
        iterable,
        description,
        total,
        unit=unit,
        initial=initial,
        leave=keep,
        disable=is_disabled,
        dynamic_ncols=True,
        bar_format=_FORMAT,
    )
