"""Settings of glibc's allocator for programs that free and allocate the same memory again and again, as networks do."""

import ctypes
import functools
import os
import sys

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables by which users set the allocator, as by ``glibc.malloc…`` in ``GLIBC_TUNABLES``."""


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees for its next allocations, instead of returning it to the system.

    By default glibc returns every large buffer and gets it back cleared, page by page, which takes some ten percent of
    the time of a training step or a prediction on the CPU. The setting affects the whole process, so that programs
    make it, and importing this package does not. It costs memory: the process keeps its peak until it ends. Before a
    fork (the workers of a data loader) it returns its free memory, so that no child keeps a copy.

    The setting needs Linux with glibc. Nothing happens elsewhere, with another allocator loaded in place of glibc's, or
    where the environment sets one of :data:`VARIABLES`. A second call changes nothing. Return True if it was made.
    """
    libc = _glibc()
    is_set = any(x in os.environ for x in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if libc is None or is_set:
        return False
    # Older versions refuse such a high threshold, but can avoid mappings altogether.
    if not (libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or libc.mallopt(_M_MMAP_MAX, 0)):
        return False
    if not libc.mallopt(_M_TRIM_THRESHOLD, -1):
        return False
    _return_before_forks()
    return True


@functools.cache
def _return_before_forks() -> None:
    os.register_at_fork(before=lambda: _glibc().malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    # Other C libraries do not have this function, and musl has no mallopt either.
    return libc if hasattr(libc, "gnu_get_libc_version") else None
