"""Checks that image files exist, can be read and have the size that the annotations are for."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from detr_d2.data.checks.findings import Finding, Severity
from detr_d2.data.images import read_image
from detr_d2.utils.errors import UserError
from detr_d2.utils.progress import progress_bar

# EXIF orientations that swap the sides, of eight.
_SIDEWAYS = (5, 6, 7, 8)
# Statistics are of one pixel in so many rows, and columns.
_STEP = 4
# Severity and message by code, in the order of the report. {total} counts the images that can be read.
_FAULTS: dict[str, tuple[Severity, str]] = {
    "image-unreadable": ("error", "{example}{in_total}"),
    "exif-rotation": (
        "error",
        "{count} of {total} images are upright only after the rotation in their EXIF data, but are annotated without "
        "it, e.g. {example}: annotate them upright, or remove the EXIF data.",
    ),
    "image-size": (
        "error",
        "{count} of {total} images are not of the size in their dataset, e.g. {example}: correct 'width' and 'height', "
        "and the boxes, or replace the files.",
    ),
    "exif-orientation": (
        "note",
        "{count} of {total} images are rotated as their EXIF data say, e.g. {example}: check that the boxes fit the "
        "upright image.",
    ),
    "image-converted": ("note", "{count} of {total} images are {conversion}, e.g. {example}."),
}
# Conversions that read_image makes, by Pillow's mode up to ";", as in "I;16B"; "RGB" needs none.
_CONVERSIONS = {
    "1": "black and white, repeated over the channels",
    "L": "grayscale, repeated over the channels",
    "LA": "grayscale with alpha, which is dropped",
    "P": "of a palette, which is looked up",
    "RGBA": "with alpha, which is dropped",
    "CMYK": "in CMYK, converted to RGB",
    "I": "of 16 or 32 bits, scaled to 8",
}


def check_files_exist(records: Sequence[dict], key: str = "file_name", kind: str = "image") -> list[Finding]:
    """Check that all files under ``key`` exist, a folder at a time; addresses (``https://…``) are skipped."""
    folders: dict[str, set[str]] = {}
    missing = []
    for path in [record[key] for record in records if record.get(key)]:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set() if _is_address(path) else _list(folder)
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


def check_image_files(records: Sequence[dict], name: str, channels: int = 3) -> list[Finding]:
    """Open and decode every image file that exists, in several threads, with a progress bar of the dataset's name.

    Unless ``channels``, the number of bands, is 3, the findings have the mean and the standard deviation of each.
    """
    records = [x for x in records if x.get("file_name") and not is_missing(x["file_name"])]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        inspected = pool.map(partial(_inspect_image, channels=channels), records)
        inspected = list(progress_bar(inspected, f"images of {name}", total=len(records), unit="image"))
    faults, sums = ([x[i] for x in inspected] for i in range(2))
    by_kind: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for record, faults_of_image in zip(records, faults, strict=True):
        for kind, example in faults_of_image.items():
            by_kind.setdefault(kind, []).append((record["file_name"], example))
    total = len(records) - len(by_kind.get(("image-unreadable", ""), ()))
    findings = []
    for code, mode in sorted(by_kind, key=lambda kind: (list(_FAULTS).index(kind[0]), kind[1])):
        severity, text = _FAULTS[code]
        count, (path, example) = len(by_kind[code, mode]), by_kind[code, mode][0]
        conversion = _CONVERSIONS.get(mode.split(";")[0], f"of mode {mode}, converted to RGB")
        in_total = f" In total, {count} images can't be read." if count > 1 else ""
        values = {"count": count, "total": total, "example": example, "in_total": in_total, "conversion": conversion}
        findings.append(Finding(severity, code, text.format(**values), count, path))
    return [*findings, *_describe_pixels([x for x in sums if x is not None])] if channels != 3 else findings


class _Sums(NamedTuple):
    """Sums over pixels of one image, one per band."""

    count: int
    values: np.ndarray
    squares: np.ndarray
    has_8_bits: bool


def _sum_pixels(image: np.ndarray) -> _Sums:
    sampled = image[::_STEP, ::_STEP].reshape(-1, image.shape[2]).astype(np.float64)
    return _Sums(len(sampled), sampled.sum(0), (sampled**2).sum(0), image.dtype == np.uint8)


def _describe_pixels(sums: Sequence[_Sums]) -> list[Finding]:
    """Return the mean and the standard deviation of the pixels, and whether images differ in scale."""
    if not sums:
        return []
    count = sum(x.count for x in sums)
    mean = sum(x.values for x in sums) / count
    std = np.sqrt(np.maximum(sum(x.squares for x in sums) / count - mean**2, 0))
    mean, std = ([float(f"{x:.5g}") for x in values] for values in (mean, std))
    message = (
        f'MODEL.PIXEL_MEAN "{mean}" MODEL.PIXEL_STD "{std}" are the statistics of these images: set them, unless a '
        "trained model needs its own."
    )
    findings = [Finding("note", "pixel-statistics", message, len(sums))]
    if 0 < (of_8_bits := sum(x.has_8_bits for x in sums)) < len(sums):
        message = (
            f"{of_8_bits} of {len(sums)} images have 8 bits per value, 0 to 255, and the others more, which are not "
            "scaled: save all with the same range."
        )
        findings.insert(0, Finding("warning", "image-depths", message, of_8_bits))
    return findings


def _inspect_image(record: dict, channels: int) -> tuple[dict[tuple[str, str], str], _Sums | None]:
    """Decode an image as training does.

    Returns:
        its faults, by code and the mode to convert, as examples of messages; and, unless ``channels`` is 3, its sums.
    """
    path = record["file_name"]
    try:
        image = read_image(path, "RGB", channels=channels)
    except UserError as error:
        return {("image-unreadable", ""): str(error)}, None
    if channels != 3:
        return _find_faults(record, image.shape[:2], 1, "RGB"), _sum_pixels(image)
    return _find_faults(record, image.shape[:2], *_read_header(path)), None


def _read_header(path: str) -> tuple[int, str]:
    """Return the EXIF orientation and Pillow's mode of a file."""
    with PathManager.open(path, "rb") as file:
        image = Image.open(file)
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except (OSError, SyntaxError, ValueError):  # damaged EXIF data, which training ignores too
            orientation = 1
    return orientation, image.mode


def _find_faults(record: dict, size: tuple[int, int], orientation: int, mode: str) -> dict[tuple[str, str], str]:
    path, expected, (height, width) = record["file_name"], (record.get("width"), record.get("height")), size
    faults = {}
    if all(expected) and expected != (width, height):
        is_rotated = orientation in _SIDEWAYS and expected == (height, width)
        faults["exif-rotation" if is_rotated else "image-size", ""] = (
            f"{path}, which is {width} x {height} pixels (width x height, EXIF rotation applied), in the dataset "
            f"{expected[0]} x {expected[1]}"
        )
    if 2 <= orientation <= 8:
        faults["exif-orientation", ""] = path
    if mode != "RGB":
        faults["image-converted", mode] = path
    return faults


def _list(folder: str) -> set[str]:
    try:
        return set(PathManager.ls(folder or "."))
    except (OSError, NotImplementedError):
        return set()


def _is_address(path: str) -> bool:
    return "://" in path
