"""Whether the image files are there, can be read and are of the size that the annotations are for."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from tqdm import tqdm

from detr_d2.data.checks.findings import Finding
from detr_d2.data.images import read_image
from detr_d2.utils.errors import UserError

# Of EXIF's eight orientations those that swap the sides.
_SIDEWAYS = (5, 6, 7, 8)
# What read_image makes of a file's pixels, by Pillow's mode; "RGB" needs no word.
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
    """What opening an image file shows: its upright size, or why it can't be read."""

    width: int = 0
    height: int = 0
    mode: str = "RGB"
    orientation: int = 1
    error: str = ""


def check_files_exist(records: Sequence[dict], key: str = "file_name", what: str = "image") -> list[Finding]:
    """Look for all files under ``key``, a folder at a time; addresses (``https://…``) are not looked for."""
    folders: dict[str, set[str]] = {}
    missing = []
    for record in records:
        path = record.get(key)
        if not path or is_address(path):
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _list(folder)
        # A file system may take upper and lower case for the same, and a listing may leave things out.
        if name not in folders[folder] and is_missing(path):
            missing.append(path)
    if not missing:
        return []
    others = f", as {len(missing)} of {len(records)} {what}s" if len(missing) > 1 else ""
    message = f"needs {what} {missing[0]}, which does not exist{others}: correct its folder."
    return [Finding("error", "image-missing", message, len(missing), missing[0])]


def is_address(path: str) -> bool:
    return "://" in path


def is_missing(path: str) -> bool:
    # Addresses can't be asked for before they are fetched.
    return not is_address(path) and not PathManager.exists(path)


def check_image_files(records: Sequence[dict], name: str) -> list[Finding]:
    """Open and decode every image file that exists, in several threads, with a progress bar on a terminal.

    Args:
        records: with "file_name" and, where the dataset says, "height" and "width".
        name: of the dataset, for the progress bar.
    """
    records = [x for x in records if x.get("file_name") and not is_missing(x["file_name"])]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found = pool.map(inspect_image, [record["file_name"] for record in records])
        facts = list(tqdm(found, f"images of {name}", len(records), disable=None, unit="image"))
    unreadable = [(record, fact.error) for record, fact in zip(records, facts, strict=True) if fact.error]
    pairs = [(record, fact) for record, fact in zip(records, facts, strict=True) if not fact.error]
    findings = []
    if unreadable:
        more = f" So are {len(unreadable) - 1} others." if len(unreadable) > 1 else ""
        example, message = unreadable[0]
        path = example["file_name"]
        findings.append(Finding("error", "image-unreadable", message + more, len(unreadable), path))
    return findings + _check_sizes(pairs) + _note_orientations(pairs) + _note_conversions(pairs)


def inspect_image(path: str) -> ImageFacts:
    """Open and decode an image as training does."""
    try:
        height, width = read_image(path, "RGB").shape[:2]
    except UserError as error:
        return ImageFacts(error=str(error))
    with PathManager.open(path, "rb") as file:
        image = Image.open(file)
        return ImageFacts(width, height, image.mode, _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError):  # damaged EXIF data, which training disregards too
        return 1


def _check_sizes(pairs: Sequence[tuple[dict, ImageFacts]]) -> list[Finding]:
    wrong = [(x, fact) for x, fact in pairs if (x.get("width"), x.get("height")) != (fact.width, fact.height)]
    wrong = [(x, fact) for x, fact in wrong if x.get("width") and x.get("height")]
    rotated = [(x, fact) for x, fact in wrong if _is_rotated(x, fact)]
    others = [(x, fact) for x, fact in wrong if not _is_rotated(x, fact)]
    findings = []
    if rotated:
        message = (
            f"{len(rotated)} of {len(pairs)} images are upright only after the rotation in their EXIF data, but are "
            f"annotated without it, e.g. {_sizes(*rotated[0])}: annotate them upright, or remove the EXIF data."
        )
        findings.append(Finding("error", "exif-rotation", message, len(rotated), rotated[0][0]["file_name"]))
    if others:
        message = (
            f"{len(others)} of {len(pairs)} images are not of the size that their dataset says, e.g. "
            f"{_sizes(*others[0])}: correct 'width' and 'height', and the boxes, or replace the files."
        )
        findings.append(Finding("error", "image-size", message, len(others), others[0][0]["file_name"]))
    return findings


def _is_rotated(record: dict, fact: ImageFacts) -> bool:
    return fact.orientation in _SIDEWAYS and (record["height"], record["width"]) == (fact.width, fact.height)


def _sizes(record: dict, fact: ImageFacts) -> str:
    return (
        f"{record['file_name']}, which is {fact.width} x {fact.height} pixels (width x height, EXIF rotation applied), "
        f"in the dataset {record['width']} x {record['height']}"
    )


def _note_orientations(pairs: Sequence[tuple[dict, ImageFacts]]) -> list[Finding]:
    turned = [record["file_name"] for record, fact in pairs if 2 <= fact.orientation <= 8]
    if not turned:
        return []
    message = (
        f"{len(turned)} of {len(pairs)} images are turned as their EXIF data say, e.g. {turned[0]}: look whether the "
        "boxes fit the upright image."
    )
    return [Finding("note", "exif-orientation", message, len(turned), turned[0])]


def _note_conversions(pairs: Sequence[tuple[dict, ImageFacts]]) -> list[Finding]:
    modes = Counter(fact.mode for _, fact in pairs if fact.mode != "RGB")
    findings = []
    for mode, count in sorted(modes.items()):
        example = next(record["file_name"] for record, fact in pairs if fact.mode == mode)
        what = _16_BITS if mode.startswith("I") else _CONVERSIONS.get(mode, f"of mode {mode}, converted to RGB")
        message = f"{count} of {len(pairs)} images are {what}, e.g. {example}."
        findings.append(Finding("note", "image-converted", message, count, example))
    return findings


def _list(folder: str) -> set[str]:
    try:
        return set(PathManager.ls(folder or "."))
    except (OSError, NotImplementedError):
        return set()
