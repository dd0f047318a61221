"""Search for the images, videos and streams that are named on a command line."""

import glob
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp")
STDIN = "-"
"""Name of standard input."""


@dataclass(frozen=True)
class InputFile:
    """An image, a video, or a live stream."""

    source: str  # Path, URL, number of a camera, or "-".
    name: str  # Unique relative path for its results in one folder.
    is_live: bool = False  # Whether frames come in real time, without an end.
    content: bytes | None = None  # Of an image that was read from standard input.

    @property
    def suffix(self) -> str:
        """The extension of its name, in lower case."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_video(self) -> bool:
        return self.is_live or self.suffix in VIDEO_EXTENSIONS


def find_inputs(names: Sequence[str]) -> list[InputFile]:
    """Return the inputs that are named, each once, in order.

    A name is a path, a folder (with its subfolders), a pattern, a URL, the address of a stream (``rtsp://…``), the
    number of a camera, or ``-`` for standard input: one image, or names of inputs, one per line.

    A file that is named is an input whatever its extension; of a folder or a pattern only images and videos are, and
    the number of other files is logged. In the names of results, files of a folder keep their relative path; a name
    that is already used gets a number.

    Raises:
        UserError: a path does not exist, a pattern matches nothing, a folder holds no image and no video, or standard
            input neither an image nor names.
    """
    inputs: dict[str, InputFile] = {}
    used: set[str] = set()
    for file in (x for text in names for x in (_read_stdin() if text == STDIN else _find(text))):
        is_path = not (_is_url(file.source) or file.is_live or file.content)
        key = str(Path(file.source).resolve()) if is_path else file.source
        if key not in inputs:
            inputs[key] = replace(file, name=_unused_name(file.name, used))
    return list(inputs.values())


def _read_stdin() -> Iterable[InputFile]:
    content = sys.stdin.buffer.read()
    try:
        extension = Image.open(io.BytesIO(content)).format.lower()
    except UnidentifiedImageError:
        try:
            names = [x.strip() for x in content.decode("utf-8").splitlines() if x.strip()]
        except UnicodeDecodeError:
            names = []
        if not names:
            raise UserError(
                "Standard input (-) holds neither an image nor names of inputs: pipe one image into the command, or "
                "names, one per line."
            ) from None
        return [file for name in names for file in _find(name)]
    return [InputFile(STDIN, f"stdin.{extension}", content=content)]


def _is_url(text: str) -> bool:
    return "://" in text


def _find(text: str) -> list[InputFile]:
    if _is_url(text):
        parts = urlsplit(text)
        name = PurePosixPath(parts.path).name or parts.netloc
        return [InputFile(text, name, is_live=parts.scheme in _LIVE_SCHEMES)]
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        return [InputFile(str(x), x.relative_to(path).as_posix()) for x in _usable(files, f"Folder {text}")]
    if path.exists():
        return [InputFile(str(path), path.name)]
    if text.isdecimal():
        return [InputFile(text, f"camera {text}", is_live=True)]
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist: give the path of an image, a video or a folder, a pattern, or a URL.")
    files = sorted(Path(x) for x in glob.glob(str(path), recursive=True) if os.path.isfile(x))
    if not files:
        raise UserError(f"No file matches the pattern {text}: check the path.")
    return [InputFile(str(x), x.name) for x in _usable(files, f"Pattern {text}")]


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
