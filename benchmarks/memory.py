"""How much memory work takes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import synchronize
from detr_d2.utils.allocator import return_freed_memory
from detr_d2.utils.errors import UserError

_STATUS = Path("/proc/self/status")


def added_memory(run: Callable[[], Any]) -> float:
    """MiB that this process, or the GPU where one is in use, holds at the peak of ``run`` more than before it.

    Raises:
        UserError: not on Linux.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not _STATUS.exists():
        raise UserError("Memory is measured on Linux only: leave out --memory.")
    # What is free already would be taken without being counted.
    return_freed_memory()
    # Forget the peak so far. Not getrusage, which counts what the parent process had, too.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1])
