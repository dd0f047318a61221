"""Output files and folders that are complete or absent, and JSON input with explained errors.

What a killed process was writing is locked no more, and replaced by the next that writes to the same path.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from detr_d2.utils.errors import UserError
from detr_d2.utils.locks import open_locked


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` when the block ends, and is removed when it fails.

    Until then the earlier content of ``path`` stays. The folder must exist.
    """
    with _temporary_name(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.remove(temporary)
            raise


@contextmanager
def _temporary_name(path: str | Path) -> Iterator[str]:
    """Yield the name of a file next to ``path`` that no other process writes to until the block ends.

    It is always the same, so that at most one such file is left behind, unless two processes write to ``path``.
    """
    name = f"{path}.tmp"
    try:
        descriptor = open_locked(name, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        descriptor = None
    try:
        yield name if descriptor is not None else f"{path}.{os.getpid()}.tmp"
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def output_folder(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Make a folder for writing that becomes ``path`` when the block ends.

    Until then its name is ``path`` followed by ".incomplete". If the block fails after a file was written, the folder
    keeps this name, and the next run replaces it; not while the block runs in another process.

    Args:
        marker: name of a file that every such folder holds in the end. A folder without it is never replaced.
        overwrite: True to replace the results of an earlier run.

    Raises:
        UserError: ``path`` is not empty and must not be replaced, another process is writing it, or the folder can't
            be made.
    """
    path = Path(os.path.abspath(path))
    _check_replaceable(path, marker, overwrite)
    incomplete = path.with_name(f"{path.name}.incomplete")
    try:
        incomplete.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(incomplete, os.O_RDONLY)
        for x in incomplete.iterdir():
            shutil.rmtree(x) if x.is_dir() and not x.is_symlink() else x.unlink()
    except BlockingIOError as e:
        raise UserError(f"Another process is writing the output folder {path}: wait for it, or name another.") from e
    except OSError as e:
        raise UserError(f"The output folder {path} can't be made ({e}): choose another.") from e
    try:
        try:
            yield incomplete
        except BaseException:
            if not any(x.is_file() for x in incomplete.rglob("*")):
                shutil.rmtree(incomplete)
            raise
        # Another program may have written to it meanwhile.
        _check_replaceable(path, marker, overwrite)
        if path.exists():
            shutil.rmtree(path)
        incomplete.rename(path)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _check_replaceable(path: Path, marker: str, overwrite: bool) -> None:
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


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as JSON in UTF-8; see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=indent, ensure_ascii=False).encode())


def read_json(
    path: str | Path, what: str = "a JSON file", fix: str = "perhaps it was cut off while it was copied; make it again"
) -> Any:
    """Return the content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        what: kind of the expected file, with its article, for messages.
        fix: advice for a file that is not JSON, for messages.

    Raises:
        UserError: the file does not exist, can't be read, is not JSON or is nested too deeply.
    """
    # Here, since commands import this module before they parse their arguments, and Detectron2 takes seconds.
    from detectron2.utils.file_io import PathManager

    try:
        with PathManager.open(str(path), "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: give the path of {what}.") from e
    except IsADirectoryError as e:
        raise UserError(f"{path} is a folder: give the path of {what}.") from e
    except OSError as e:
        raise UserError(f"{path} can't be read ({e}): give the path of {what}.") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not {what}, since it is not text in UTF-8 ({e}): {fix}.") from e
    except RecursionError as e:
        raise UserError(f"{path} is not {what}, since its JSON is nested too deeply: {fix}.") from e
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}): {fix}.") from e
