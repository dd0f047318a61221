"""Reader of YOLO labels: one text file per image, a line per object, coordinates as fractions of the image.

A line is a class number and a box (center x, center y, width, height), or a class number and a polygon (x, y, x, y, …).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from detr_d2.data.formats.records import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotatedObject,
    Source,
    read_numbers,
)
from detr_d2.data.formats.yolo_layout import find_dataset_file, find_label_folder, read_dataset_file
from detr_d2.utils.errors import UserError

# A fraction beyond this is no imprecise outline but a coordinate in pixels.
_MAX_FRACTION = 2


def detect(source: Source) -> str | None:
    """Return what looks like YOLO at the path of a source; None if nothing does."""
    if dataset_file := find_dataset_file(source.path):
        return f"{dataset_file} with 'names' and 'train' or 'val'"
    folder = find_label_folder(source.path)
    first = next((file for file in folder.files if _is_label_file(file)), None) if folder else None
    return first and f"label files, e.g. {first}"


def read(source: Source) -> AnnotatedDataset:
    """Read a ``data.yaml`` (of a folder or itself), or a folder of labels with the images beside it.

    Raises:
        UserError: files or class names are missing, or a line is malformed; the message names it.
    """
    if dataset_file := find_dataset_file(source.path):
        dataset = read_dataset_file(dataset_file, source)
    elif folder := find_label_folder(source.path):
        dataset = folder.dataset(source)
    else:
        raise UserError(f"{source.path} has no data.yaml, and no folder of label files: give one of them.")
    images = [
        _read_image(image, dataset.labels.get(image), splits, dataset.classes, dataset.has_keypoints, source)
        for image, splits in dataset.images.items()
    ]
    return AnnotatedDataset(images, [source.path], dataset.classes)


def _is_label_file(path: Path) -> bool:
    """Check whether the first line of a text file is a class number and four or more other numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            words = file.readline().split()
        return len(words) >= 5 and words[0].isdigit() and all(0 <= float(word) <= 1 for word in words[1:])
    except (OSError, ValueError):
        return False


def _read_image(
    image: Path,
    labels: Path | None,
    splits: frozenset[str],
    classes: Sequence[str],
    has_keypoints: bool,
    source: Source,
) -> AnnotatedImage:
    objects = []
    for number, line in enumerate(_read_lines(labels) if labels else (), start=1):
        name = f"line {number} of {labels}"
        words = line.split()
        if not words:
            continue
        category = _class_of(words[0], name, classes)
        values = read_numbers(words[1:], name)
        if has_keypoints and len(values) > 4:
            source.notes.add("objects have keypoints, which are not read. Their boxes are used.", name)
            values = values[:4]
        objects.append(_make_object(name, category, values))
    return AnnotatedImage((str(image),), str(labels or image), objects, is_relative=True, splits=splits)


def _read_lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as e:
        raise UserError(f"{path} can't be read as a label file ({e}): correct or remove it.") from e


def _class_of(word: str, name: str, classes: Sequence[str]) -> str:
    try:
        number = float(word)
        return classes[int(number)] if number >= 0 and number == int(number) else classes[len(classes)]
    except (ValueError, OverflowError, IndexError) as e:
        raise UserError(
            f"The class of {name} is {word!r:.40}, where a number from 0 to {len(classes) - 1} is expected: correct "
            "it, or the list of names."
        ) from e


def _make_object(name: str, category: str, values: list[float]) -> AnnotatedObject:
    if any(abs(value) > _MAX_FRACTION for value in values):
        raise UserError(
            f"The coordinates of {name} are no fractions of the image, from 0 to 1: divide them by its size."
        )
    if len(values) == 4:
        x, y, width, height = values
        return AnnotatedObject(name, category, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(values) < 6 or len(values) % 2:
        hint = " A sixth number is a detection's score, which labels do not have." if len(values) == 5 else ""
        raise UserError(
            f"{name} has {len(values)} numbers after the class, where a box has 4 and a polygon an even number from 6: "
            f"correct it.{hint}"
        )
    return AnnotatedObject(name, category, segmentation=[values])
