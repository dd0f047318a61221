"""What every reader of an annotation format returns, and what it is given."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detr_d2.utils.errors import ExampleCounter, UserError
from detr_d2.utils.files import read_json

SPLIT_NAMES = ("train", "trainval", "training", "val", "valid", "validation", "test", "testing")
"""Names of splits in the order in which they are preferred: for training from the start, see :func:`pick_split`."""

_FOR_TRAINING = 3


@dataclass(frozen=True)
class AnnotatedObject:
    """Object as it was annotated, possibly beyond its image."""

    name: str  # Display name, used in messages: "object 3 (counted from 0) in a.xml".
    category: str
    box: Sequence[float] | None = None  # x0, y0, x1, y1; None: that of the polygons.
    segmentation: Sequence[Sequence[float]] | dict[str, Any] = ()  # Polygons x, y, x, y, …; or an RLE in COCO's format.
    is_crowd: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """Image with its objects. Its file has not been looked for yet."""

    file_names: tuple[str, ...]  # Names that the file may have, the likeliest first; absolute or below an image folder.
    source: str  # Where its annotations are, for messages.
    objects: Sequence[AnnotatedObject]
    size: tuple[int, int] | None = None  # Height and width as annotated.
    is_relative: bool = False  # True if coordinates are fractions of the image's width and height.
    splits: frozenset[str] = frozenset()
    file_bytes: int = -1  # Size of the file when it was annotated; -1 if unknown.


@dataclass(frozen=True)
class AnnotatedDataset:
    """All images of a dataset."""

    images: Sequence[AnnotatedImage]
    image_roots: Sequence[Path]  # Folders to look for the image files in, if the user gives none.
    classes: Sequence[str] | None = None  # All classes in the order of the format; None if it has no order.

    def splits(self) -> dict[str, int]:
        """Return the number of images of every split, in the order of ``SPLIT_NAMES``."""
        names = [name for image in self.images for name in image.splits]
        return {name: names.count(name) for name in SPLIT_NAMES if name in names}

    def select(self, split: str) -> "list[AnnotatedImage]":
        """Return the images of a split."""
        return [image for image in self.images if split in image.splits]


@dataclass
class Source:
    """What the user gives: files or a folder, and options. ``notes`` collects what readers drop or doubt."""

    path: Path
    images: Path | None = None
    classes: Sequence[str] | None = None
    class_attribute: str | None = None  # Of VIA.
    default_class: str | None = None  # Of VIA.
    notes: ExampleCounter = field(default_factory=ExampleCounter)
    _contents: dict[Path, Any] = field(default_factory=dict)

    def json(self, path: Path) -> Any:
        """Return the content of a JSON file, which is read once. If it is not valid, raise a UserError."""
        if path not in self._contents:
            self._contents[path] = read_json(path, "a JSON file of annotations")
        return self._contents[path]

    def find_json(self, is_valid: Callable[[Any], bool]) -> Path | None:
        """Return the JSON file that the path is, or the first of the folder, if its content is valid; else None."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.json"))[:1]
        return next((x for x in files if x.suffix.lower() == ".json" and is_valid(self.json(x))), None)

    def drop(self, what: str, name: str) -> None:
        """Count something that is left out, such as "objects were dropped, since …"."""
        self.notes.add(what, name)


def pick_split(names: Iterable[str], for_training: bool) -> str | None:
    """Return the name of the split to train on or to evaluate on; None if there is none."""
    order = SPLIT_NAMES[:_FOR_TRAINING] if for_training else SPLIT_NAMES[_FOR_TRAINING:]
    names = set(names)
    return next((name for name in order if name in names), None)


def split_of(name: str) -> frozenset[str]:
    """Return the split that a folder or file name says, as "instances_train2017": a set of one, or the empty set."""
    words = "".join(x if x.isalpha() else " " for x in name.lower()).split()
    return frozenset([word for word in words if word in SPLIT_NAMES][:1])


def read_numbers(values: Any, what: str, count: int | None = None) -> list[float]:
    """Return finite numbers from numbers or their texts.

    Raises:
        UserError: there are fewer or more than ``count``, or one is none; the message begins with ``what``.
    """
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        raise UserError(f"{what} is {values!r:.60}, where {count or 'a list of'} numbers are expected: correct it.")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{what} is malformed ({e}): correct it.") from e
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{what} has numbers that are not finite: correct it.")
    return numbers


def read_size(values: Any, what: str) -> tuple[int, int]:
    """Return height and width from two numbers or their texts; errors as of :func:`read_numbers`."""
    height, width = read_numbers(values, what, 2)
    return int(height), int(width)


def read_points(values: Any, what: str) -> list[float]:
    """Return the coordinates x, y, x, y, … of a polygon from a list of points; errors as of :func:`read_numbers`."""
    if not isinstance(values, list | tuple) or len(values) < 3:
        raise UserError(f"{what} is {values!r:.60}, where a list of 3 or more points is expected: correct it.")
    return [number for point in values for number in read_numbers(point, what, 2)]


def corners(box: Sequence[float]) -> list[float]:
    """Return the box x0, y0, x1, y1 that two opposite corners x, y, x, y span."""
    return [*map(min, box[:2], box[2:]), *map(max, box[:2], box[2:])]
