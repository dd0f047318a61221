"""Locks on files and folders, which the system releases when the process that holds them ends in any way."""

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:
    # On Windows nothing is locked.
    fcntl = None


def lock(file: IO | int) -> bool | None:
    """Lock an open file or folder until it is closed; return False if it is locked already.

    Children that are forked meanwhile keep the lock until they end, too. Return None where the system or the file
    system has no locks.
    """
    return _lock(file, "flock")


def lock_for_process(file: IO) -> bool | None:
    """Lock a file that is open for writing, as :func:`lock`, but for this process alone, not for its children.

    A lock of this kind is invisible to :func:`lock`, and ends when the process closes the file in any other place.
    """
    return _lock(file, "lockf")


def _lock(file: IO | int, kind: str) -> bool | None:
    if fcntl is None:
        return None
    try:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def open_locked(path: str | Path, flags: int) -> int | None:
    """Open a file or folder with :func:`lock`, and return its descriptor; None where there are no locks.

    Raises:
        BlockingIOError: it is locked already, or was moved meanwhile.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, flags, 0o666)
    locked = lock(descriptor)
    moved = not (os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)))
    if locked and not moved:
        return descriptor
    os.close(descriptor)
    if locked is None:
        if flags & os.O_CREAT:
            os.remove(path)
        return None
    raise BlockingIOError(f"{path} is locked")


def remove_abandoned(folder: Path, pattern: str) -> list[str]:
    """Remove the files of ``folder`` that match a pattern and are not locked, and return their names."""
    removed = []
    for path in sorted(folder.glob(pattern) if fcntl is not None else []):
        try:
            with open(path, "rb+") as file:
                if lock(file):
                    os.remove(path)
                    removed.append(path.name)
        except OSError:
            continue
    return removed
