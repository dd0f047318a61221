"""Where generated datasets are kept between runs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import file_lock

from detr_d2.utils.errors import UserError


def cache_root() -> Path:
    """``DETR_D2_CACHE``, by default ``detr_d2`` in the user's cache folder."""
    cache = os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.getenv("DETR_D2_CACHE") or Path(cache) / "detr_d2")


def cached_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """``path``, filled by ``fill(folder)`` unless an earlier call has done so.

    The folder is complete or absent; of several processes that come at once one fills it and the others wait.

    Raises:
        UserError: the folder can't be written to.
    """
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(path)):
            if not path.is_dir():
                _fill_aside(path, fill)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error}): set the environment variable DETR_D2_CACHE to a folder with room."
        ) from error
    return path


def _fill_aside(path: Path, fill: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fill(aside)
        # mkdtemp lets nobody else read.
        aside.chmod(0o755)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
