"""Finding the images and videos that somebody names on a command line."""

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class InputFile:
    """An image or a video."""

    path: Path
    name: str
    """Relative path that no other input has: for results that lie in one folder."""

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_ENDINGS


def find_inputs(names: Sequence[str]) -> list[InputFile]:
    """The files that paths, folders (with what lies below them) and patterns stand for, each once, in order.

    A file that is named is an input whatever its ending; of a folder or a pattern only images and videos are, and how
    many others there are is logged. In the names of results, files of a folder keep their place below it; a name that
    is taken gets a number.

    Raises:
        UserError: a path does not exist, a pattern matches nothing, or a folder holds no image and no video.
    """
    found, paths, taken = [], set(), set()
    for path, name in (x for text in names for x in _find(text)):
        if (resolved := path.resolve()) in paths:
            continue
        paths.add(resolved)
        name = _free_name(name, taken)
        taken.add(name.lower())
        found.append(InputFile(path, name))
    return found


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
    endings = _endings()
    visible = [x for x in files if not x.name.startswith(".")]
    usable = [x for x in visible if x.suffix.lower() in endings]
    others = [x for x in visible if x.suffix.lower() not in endings]
    if not usable:
        instead = f", but {len(others)} other files, such as {others[0].name}" if others else ": it is empty"
        raise UserError(
            f"{source} has no images and no videos{instead}. Known are the endings of Pillow's formats, such as "
            f".jpg, .png and .tif, and {', '.join(VIDEO_ENDINGS)}."
        )
    if others:
        logger.info(
            f"{source}: left out, for they are no images or videos: {len(others)} of its files, such as {others[0]}."
        )
    return usable


def _endings() -> set[str]:
    images = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
    # Pillow also opens documents and moving pictures of formats that a folder of photographs may hold beside them.
    return images - {".pdf", ".eps", ".ps", ".mpeg", ".mpg"} | set(VIDEO_ENDINGS)


def _free_name(name: str, taken: set[str]) -> str:
    """``name``, or with a number before its ending; case does not count, as on some file systems."""
    return next(x for x in _numbered(name) if x.lower() not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    stem, ending = os.path.splitext(name)
    number = 2
    while True:
        yield f"{stem}_{number}{ending}"
        number += 1
