"""The figures of a dataset: how many images, objects and classes, and how large the objects are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detr_d2.data.annotations import has_area
from detr_d2.data.checks.annotation_table import AnnotationTable

NUM_SMALLEST = 3
# COCO calls objects of under 32 x 32 pixels small, and of over 96 x 96 large.
SMALL_AREA, LARGE_AREA = 32**2, 96**2


@dataclass(frozen=True)
class ClassCount:
    label: int
    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class SmallBox:
    width: float
    height: float
    annotation: str


@dataclass(frozen=True)
class DatasetStatistics:
    """Of the boxes that training keeps: readable, no crowds, with an area inside their image, where they are clipped.

    Attributes:
        images, objects: how many.
        images_without_objects: of the images, those without any such box.
        crowds: annotations with "iscrowd" 1.
        median_objects, max_objects: of the images.
        most_objects_in: the image with the most.
        small, medium, large: objects by area of their box: under 32 x 32 pixels, up to 96 x 96, above.
        smallest_boxes: in pixels, by area.
        smallest_image, largest_image: width and height, by area; None if the dataset doesn't say.
        classes: by label.
    """

    images: int
    images_without_objects: int
    objects: int
    crowds: int
    median_objects: float
    max_objects: int
    most_objects_in: str
    small: int
    medium: int
    large: int
    smallest_boxes: list[SmallBox]
    smallest_image: tuple[int, int] | None
    largest_image: tuple[int, int] | None
    classes: list[ClassCount]

    @property
    def empty_share(self) -> float:
        return self.images_without_objects / max(self.images, 1)

    @property
    def crowd_share(self) -> float:
        return self.crowds / max(self.crowds + self.objects, 1)


def compute_statistics(
    records: Sequence[dict], table: AnnotationTable, classes: Sequence[str] | None
) -> DatasetStatistics:
    """Count. ``classes`` are the names by label; if None, labels are their own names."""
    boxes = table.clipped()
    keep = np.flatnonzero(table.is_readable() & has_area(boxes) & (table.classes >= 0))
    sides = boxes[keep, 2:] - boxes[keep, :2]
    areas = sides.prod(axis=1)
    objects = np.bincount(table.image_index[keep], minlength=len(records))
    smallest = np.argsort(areas, kind="stable")[:NUM_SMALLEST]
    sizes = sorted(
        ((x["width"], x["height"]) for x in records if x.get("width") and x.get("height")), key=lambda s: s[0] * s[1]
    )
    small, large = int((areas < SMALL_AREA).sum()), int((areas > LARGE_AREA).sum())
    return DatasetStatistics(
        images=len(records),
        images_without_objects=int((objects == 0).sum()),
        objects=len(keep),
        crowds=table.num_crowds,
        median_objects=float(np.median(objects)) if len(records) else 0.0,
        max_objects=int(objects.max(initial=0)),
        most_objects_in=table.image_name(int(objects.argmax())) if len(keep) else "",
        small=small,
        medium=len(keep) - small - large,
        large=large,
        smallest_boxes=[
            SmallBox(*(round(x, 2) for x in sides[i].tolist()), table.name(int(keep[i]))) for i in smallest
        ],
        smallest_image=sizes[0] if sizes else None,
        largest_image=sizes[-1] if sizes else None,
        classes=_count_classes(table, keep, classes),
    )


def _small_box(sides: np.ndarray, annotation: str) -> SmallBox:
    width, height = (round(side, 2) for side in sides.tolist())
    return SmallBox(width, height, annotation)


def _count_classes(table: AnnotationTable, keep: np.ndarray, names: Sequence[str] | None) -> list[ClassCount]:
    labels = table.classes[keep]
    objects = _occurrences(labels)
    # With the image in the upper and the label in the lower part of one number, each pair counts once.
    span = int(labels.max(initial=0)) + 1
    images = _occurrences(np.unique(table.image_index[keep] * span + labels) % span)
    shown = enumerate(names) if names is not None else ((label, str(label)) for label in sorted(objects))
    return [ClassCount(label, str(name), objects.get(label, 0), images.get(label, 0)) for label, name in shown]


def _occurrences(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
