"""Checks that image files exist, can be read and have the size that the annotations are for."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from tqdm import tqdm

from detr_d2.data.checks.findings import Finding
from detr_d2.data.images import read_image
from detr_d2.utils.errors import ExampleCounter, UserError

# EXIF orientations that swap the sides, of eight.
_SIDEWAYS = (5, 6, 7, 8)
# Conversions that read_image makes, by Pillow's mode; "RGB" needs none.
_CONVERSIONS = {
    "1": "black and white, repeated over the channels",
    "L": "grayscale, repeated over the channels",
    "LA": "grayscale with alpha, which is dropped",
    "P": "of a palette, which is looked up",
    "RGBA": "with alpha, which is dropped",
    "CMYK": "in CMYK, converted to RGB",
}
_16_BITS = "of 16 or 32 bits, scaled to 8"


@dataclass(frozen=True)
class ImageFacts:
    """Facts that opening an image file shows: its upright size, or why it can't be read."""

    width: int = 0
    height: int = 0
    mode: str = "RGB"
    orientation: int = 1
    error: str = ""


def check_files_exist(records: Sequence[dict], key: str = "file_name", kind: str = "image") -> list[Finding]:
    """Check that all files under ``key`` exist, a folder at a time; addresses (``https://…``) are skipped."""
    folders: dict[str, set[str]] = {}
    missing = []
    for record in records:
        path = record.get(key)
        if not path or _is_address(path):
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _list(folder)
        # A file system may not distinguish upper and lower case, and a listing may leave things out.
        if name not in folders[folder] and is_missing(path):
            missing.append(path)
    if not missing:
        return []
    others = f", as {len(missing)} of {len(records)} {kind}s" if len(missing) > 1 else ""
    message = f"needs {kind} {missing[0]}, which does not exist{others}: correct its folder."
    return [Finding("error", "image-missing", message, len(missing), missing[0])]


def is_missing(path: str) -> bool:
    """Check whether a path does not exist; an address can't be checked before it is fetched."""
    return not _is_address(path) and not PathManager.exists(path)


def check_image_files(records: Sequence[dict], name: str) -> list[Finding]:
    """Open and decode every image file that exists, in several threads, with a progress bar on a terminal.

    Args:
        records: with "file_name" and, where the dataset has them, "height" and "width".
        name: of the dataset, for the progress bar.
    """
    records = [x for x in records if x.get("file_name") and not is_missing(x["file_name"])]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found = pool.map(_inspect_image, [record["file_name"] for record in records])
        facts = list(tqdm(found, f"images of {name}", len(records), disable=None, unit="image"))
    pairs = list(zip(records, facts, strict=True))
    readable = [(record, fact) for record, fact in pairs if not fact.error]
    unreadable = [(record, fact) for record, fact in pairs if fact.error]
    findings = []
    if unreadable:
        more = f" So are {len(unreadable) - 1} others." if len(unreadable) > 1 else ""
        record, fact = unreadable[0]
        findings.append(Finding("error", "image-unreadable", fact.error + more, len(unreadable), record["file_name"]))
    return [*findings, *_check_sizes(readable), *_check_modes(readable)]


def _inspect_image(path: str) -> ImageFacts:
    """Open and decode an image as training does."""
    try:
        height, width = read_image(path, "RGB").shape[:2]
    except UserError as error:
        return ImageFacts(error=str(error))
    with PathManager.open(path, "rb") as file:
        image = Image.open(file)
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except (OSError, SyntaxError, ValueError):  # damaged EXIF data, which training ignores too
            orientation = 1
        return ImageFacts(width, height, image.mode, orientation)


def _check_sizes(pairs: Sequence[tuple[dict, ImageFacts]]) -> Iterator[Finding]:
    rotated, others = [], []
    for record, fact in pairs:
        height, width = record.get("height"), record.get("width")
        if not width or not height or (width, height) == (fact.width, fact.height):
            continue
        is_rotated = fact.orientation in _SIDEWAYS and (height, width) == (fact.width, fact.height)
        (rotated if is_rotated else others).append((record, fact))
    if rotated:
        message = (
            f"{len(rotated)} of {len(pairs)} images are upright only after the rotation in their EXIF data, but are "
            f"annotated without it, e.g. {_sizes(*rotated[0])}: annotate them upright, or remove the EXIF data."
        )
        yield Finding("error", "exif-rotation", message, len(rotated), rotated[0][0]["file_name"])
    if others:
        message = (
            f"{len(others)} of {len(pairs)} images are not of the size in their dataset, e.g. "
            f"{_sizes(*others[0])}: correct 'width' and 'height', and the boxes, or replace the files."
        )
        yield Finding("error", "image-size", message, len(others), others[0][0]["file_name"])


def _sizes(record: dict, fact: ImageFacts) -> str:
    return (
        f"{record['file_name']}, which is {fact.width} x {fact.height} pixels (width x height, EXIF rotation applied), "
        f"in the dataset {record['width']} x {record['height']}"
    )


def _check_modes(pairs: Sequence[tuple[dict, ImageFacts]]) -> Iterator[Finding]:
    """Note which images are rotated by their EXIF data, and which are converted to RGB."""
    rotated = [record["file_name"] for record, fact in pairs if 2 <= fact.orientation <= 8]
    if rotated:
        message = (
            f"{len(rotated)} of {len(pairs)} images are rotated as their EXIF data say, e.g. {rotated[0]}: check that "
            "the boxes fit the upright image."
        )
        yield Finding("note", "exif-orientation", message, len(rotated), rotated[0])
    converted = ExampleCounter()
    for record, fact in pairs:
        if fact.mode != "RGB":
            converted.add(fact.mode, record["file_name"])
    for mode, count, example in sorted(converted):
        conversion = _16_BITS if mode.startswith("I") else _CONVERSIONS.get(mode, f"of mode {mode}, converted to RGB")
        message = f"{count} of {len(pairs)} images are {conversion}, e.g. {example}."
        yield Finding("note", "image-converted", message, count, example)


def _list(folder: str) -> set[str]:
    try:
        return set(PathManager.ls(folder or "."))
    except (OSError, NotImplementedError):
        return set()


def _is_address(path: str) -> bool:
    return "://" in path
