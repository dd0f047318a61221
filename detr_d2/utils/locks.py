"""Locks on files, which the system releases when the process that holds them ends in any way."""

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:
    # On Windows nothing is locked.
    fcntl = None


def lock(file: IO) -> bool:
    """Lock an open file for this process until it is closed; return False if another process holds the lock.

    A child does not inherit the lock. Where the file system has no locks, True is returned.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


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
