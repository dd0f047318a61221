"""Memory that a program frees and soon takes again, as every layer of a network does."""

import ctypes
import functools
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""With these users choose for themselves, as with ``glibc.malloc…`` in ``GLIBC_TUNABLES``."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, to use it again, instead of returning it to the system.

    Otherwise glibc returns every large buffer, and takes it back cleared, page by page: in a step or a prediction on
    the CPU some ten percent of the time. It concerns the whole process, with whatever else runs in it, which is why
    programs do it, and importing this package does not. It costs memory: the process holds its peak until it ends,
    or forks (the workers of a loader), when what is free at that moment is returned, so that no child holds on to it.

    On Linux with glibc only; it does nothing elsewhere, to an allocator that was loaded in glibc's place, or where the
    environment sets one of :data:`VARIABLES`. Doing it twice is doing it once.

    Returns:
        whether it was done.
    """
    libc = _glibc()
    if libc is None or _is_chosen():
        return False
    # Older versions refuse a threshold that high; they can do without mappings at all.
    if not (libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or libc.mallopt(_M_MMAP_MAX, 0)):
        return False
    if not libc.mallopt(_M_TRIM_THRESHOLD, -1):
        return False
    _return_before_forks()
    return True


def return_freed_memory() -> None:
    """Give what is free at this moment back to the system; on Linux with glibc."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _is_chosen() -> bool:
    return any(x in os.environ for x in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


@functools.cache
def _return_before_forks() -> None:
    os.register_at_fork(before=return_freed_memory)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    # Other C libraries have no such function, musl neither mallopt.
    return libc if hasattr(libc, "gnu_get_libc_version") else None
