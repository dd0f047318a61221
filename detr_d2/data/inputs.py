"""Search for the images and videos that are named on a command line."""

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class InputFile:
    """An image or a video."""

    path: Path
    name: str  # Unique relative path for its results in one folder.

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_EXTENSIONS


def find_inputs(names: Sequence[str]) -> list[InputFile]:
    """Return the files at paths, in folders (with their subfolders) and matching patterns, each once, in order.

    A file that is named is an input whatever its extension; of a folder or a pattern only images and videos are, and
    the number of other files is logged. In the names of results, files of a folder keep their relative path; a name
    that is already used gets a number.

    Raises:
        UserError: a path does not exist, a pattern matches nothing, or a folder holds no image and no video.
    """
    inputs: dict[Path, InputFile] = {}
    used: set[str] = set()
    for path, name in (x for text in names for x in _find(text)):
        if path.resolve() not in inputs:
            inputs[path.resolve()] = InputFile(path, _unused_name(name, used))
    return list(inputs.values())


def _find(text: str) -> list[tuple[Path, str]]:
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        return [(x, x.relative_to(path).as_posix()) for x in _usable(files, f"Folder {text}")]
    if path.exists():
        return [(path, path.name)]
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist: give the path of an image, a video or a folder, or a pattern.")
    files = sorted(Path(x) for x in glob.glob(str(path), recursive=True) if os.path.isfile(x))
    if not files:
        raise UserError(f"No file matches the pattern {text}: check the path.")
    return [(x, x.name) for x in _usable(files, f"Pattern {text}")]


def _usable(files: list[Path], source: str) -> list[Path]:
    images = {extension for extension, form in Image.registered_extensions().items() if form in Image.OPEN}
    # Pillow also opens documents and videos, which a folder of photographs may hold too.
    extensions = images - {".pdf", ".eps", ".ps", ".mpeg", ".mpg"} | set(VIDEO_EXTENSIONS)
    visible = [x for x in files if not x.name.startswith(".")]
    usable = [x for x in visible if x.suffix.lower() in extensions]
    others = [x for x in visible if x.suffix.lower() not in extensions]
    if not usable:
        content = f", but {len(others)} other files, such as {others[0].name}" if others else ": it is empty"
        raise UserError(
            f"{source} has no images and no videos{content}. Supported are the extensions of Pillow's formats, such as "
            f".jpg, .png and .tif, and {', '.join(VIDEO_EXTENSIONS)}."
        )
    if others:
        logger.info(
            "%s: %d of its files are not images or videos and are left out, e.g. %s.", source, len(others), others[0]
        )
    return usable


def _unused_name(name: str, used: set[str]) -> str:
    """Return ``name``, if used with a number before its extension; case does not count, as on some file systems."""
    stem, extension = os.path.splitext(name)
    number = 1
    while name.lower() in used:
        number += 1
        name = f"{stem}_{number}{extension}"
    used.add(name.lower())
    return name
