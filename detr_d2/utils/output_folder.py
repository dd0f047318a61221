"""Folders of results that are complete or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detr_d2.utils.errors import UserError


@contextmanager
def output_folder(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write to that becomes ``path`` when the block ends.

    Until then it is ``path`` with ".incomplete" behind it; there it stays if the block fails after something was
    written, and is replaced by the next run.

    Args:
        marker: a file that every such folder holds in the end. No folder without it is ever replaced.
        overwrite: replace what an earlier run wrote.

    Raises:
        UserError: ``path`` holds something, and may not be replaced; or can't be made.
    """
    path = Path(os.path.abspath(path))
    _check(path, marker, overwrite)
    incomplete = path.with_name(f"{path.name}.incomplete")
    try:
        if incomplete.exists():
            shutil.rmtree(incomplete)
        incomplete.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"The output folder {path} can't be made ({e}): choose another.") from e
    try:
        yield incomplete
    except BaseException:
        if not any(x.is_file() for x in incomplete.rglob("*")):
            shutil.rmtree(incomplete)
        raise
    # Somebody may have written to it meanwhile.
    _check(path, marker, overwrite)
    if path.exists():
        shutil.rmtree(path)
    incomplete.rename(path)


def _check(path: Path, marker: str, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file: name a folder for the output.")
    if not any(path.iterdir()):
        return
    if not (path / marker).is_file():
        raise UserError(f"The output folder {path} holds other files: name a new one. They are never overwritten.")
    if not overwrite:
        raise UserError(f"The output folder {path} holds results already: name another, or add --overwrite.")
