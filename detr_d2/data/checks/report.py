"""Report of a dataset: its statistics and findings, as text and for JSON."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tabulate import tabulate

from detr_d2.data.checks.annotation_checks import AnnotationTable
from detr_d2.data.checks.findings import Finding, count_severities

LINE_LENGTH = 100
# Above this number, the classes are listed in two columns.
CLASSES_IN_A_COLUMN = 24
NUM_SMALLEST = 3
# COCO calls objects of under 32 x 32 pixels small, and of over 96 x 96 large.
SMALL_AREA, LARGE_AREA = 32**2, 96**2


@dataclass(frozen=True)
class ClassCount:
    """Number of objects of a class, and of images with one."""

    label: int
    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class SmallBox:
    """Sides of a box in pixels, and what to call its annotation."""

    width: float
    height: float
    annotation: str

    def __str__(self) -> str:
        return f"{self.width:g} x {self.height:g}"


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of the boxes that training keeps: readable, not crowds, clipped to their image with an area left.

    Attributes:
        images_without_objects: images without any such box.
        crowds: annotations with "iscrowd" 1.
        median_objects, max_objects: of the images.
        most_objects_in: the image with the maximum.
        small, medium, large: objects by area of their box: under 32 x 32 pixels, up to 96 x 96, above.
        smallest_boxes: by area.
        smallest_image, largest_image: width and height, by area; None if the dataset has no sizes.
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


@dataclass(frozen=True)
class DatasetReport:
    """Statistics and findings, errors first, of one dataset; the number of queries is the model's, if known."""

    name: str
    num_queries: int | None
    statistics: DatasetStatistics
    findings: list[Finding]

    def summary(self) -> str:
        """Return the statistics in one line."""
        x = self.statistics
        queries = f" ({self.num_queries} queries)" if self.num_queries else ""
        smallest = f"; smallest box {x.smallest_boxes[0]}" if x.smallest_boxes else ""
        return (
            f"{x.images} images, {x.images_without_objects} ({x.empty_share:.1%}) without objects; {x.objects} objects "
            f"of {sum(c.objects > 0 for c in x.classes)} classes; {x.crowds} crowds ({x.crowd_share:.1%}); objects "
            f"per image: median {x.median_objects:g}, at most {x.max_objects}{queries}{smallest}"
        )


@dataclass(frozen=True)
class CheckResult:
    """Reports of several datasets, and findings between them or about the model's number of classes."""

    datasets: list[DatasetReport]
    between_datasets: list[Finding]

    def findings(self) -> list[Finding]:
        """Return all findings."""
        return [*self.between_datasets, *(finding for report in self.datasets for finding in report.findings)]

    def to_dict(self) -> dict:
        """Return the result for JSON."""
        return {**asdict(self), "counts": count_severities(self.findings())}


def compute_statistics(table: AnnotationTable, classes: Sequence[str] | None) -> DatasetStatistics:
    """Compute statistics. ``classes`` are the names by label; if None, labels are their own names."""
    records = table.records
    keep = np.flatnonzero(table.usable())
    boxes = table.clipped[keep]
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    objects = np.bincount(table.image_index[keep], minlength=len(records))
    smallest = np.argsort(areas, kind="stable")[:NUM_SMALLEST]
    sizes = sorted(((x["width"], x["height"]) for x in records if x.get("width") and x.get("height")), key=math.prod)
    small, large = int((areas < SMALL_AREA).sum()), int((areas > LARGE_AREA).sum())
    return DatasetStatistics(
        images=len(records),
        images_without_objects=int((objects == 0).sum()),
        objects=len(keep),
        crowds=table.num_crowds,
        median_objects=float(np.median(objects)) if len(records) else 0.0,
        max_objects=int(objects.max(initial=0)),
        most_objects_in=records[objects.argmax()]["file_name"] if len(keep) else "",
        small=small,
        medium=len(keep) - small - large,
        large=large,
        smallest_boxes=[SmallBox(*np.round(sides[i].tolist(), 2).tolist(), table.name(int(keep[i]))) for i in smallest],
        smallest_image=sizes[0] if sizes else None,
        largest_image=sizes[-1] if sizes else None,
        classes=_count_classes(table.classes[keep], table.image_index[keep], classes),
    )


def _count_classes(labels: np.ndarray, images: np.ndarray, names: Sequence[str] | None) -> list[ClassCount]:
    objects = Counter(labels.tolist())
    images_with = Counter(label for label, _ in set(zip(labels.tolist(), images.tolist(), strict=True)))
    shown = enumerate(names) if names is not None else ((label, str(label)) for label in sorted(objects))
    return [ClassCount(label, str(name), objects[label], images_with[label]) for label, name in shown]


def format_result(result: CheckResult) -> str:
    """Format all reports as text."""
    parts = [_format_report(report) for report in result.datasets]
    if result.between_datasets:
        parts.append("Between datasets and model\n" + _format_findings(result.between_datasets))
    if len(parts) > 1:
        parts.append(f"In all: {_describe_counts(result.findings())}")
    return "\n\n\n".join(parts) + "\n"


def _format_report(report: DatasetReport) -> str:
    heading = f"{report.name}\n{'=' * len(report.name)}"
    statistics = _format_statistics(report.statistics, report.num_queries)
    return "\n\n".join(
        [heading, statistics, _format_classes(report.statistics.classes), _format_findings(report.findings)]
    )


def _format_findings(findings: Sequence[Finding]) -> str:
    """Format one paragraph per finding, and the number of findings of each severity."""
    wrapper = textwrap.TextWrapper(
        LINE_LENGTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    paragraphs = [wrapper.fill(f"{x.severity:<8}[{x.code}] {x.message}") for x in findings]
    return "\n".join([*paragraphs, _describe_counts(findings)])


def _describe_counts(findings: Sequence[Finding]) -> str:
    counts = count_severities(findings)
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())


def _format_statistics(x: DatasetStatistics, num_queries: int | None) -> str:
    queries = f"the model has {num_queries} queries" if num_queries else ""
    rows = [
        ("images", x.images, ""),
        ("images without objects", x.images_without_objects, f"{x.empty_share:.1%} of the images"),
        ("objects", x.objects, f"{x.small} small, {x.medium} medium, {x.large} large (COCO's limits, boxes)"),
        ("crowds", x.crowds, f"{x.crowd_share:.1%} of the annotations; not trained on"),
        ("objects per image: median", f"{x.median_objects:g}", ""),
        ("objects per image: max", x.max_objects, "; ".join(filter(None, [x.most_objects_in, queries]))),
        ("classes with objects", sum(c.objects > 0 for c in x.classes), f"of {len(x.classes)}"),
    ]
    for title, size in (("smallest image", x.smallest_image), ("largest image", x.largest_image)):
        rows += [(title, f"{size[0]} x {size[1]}", "width x height")] if size else []
    rows += [("" if i else "smallest box", box, box.annotation) for i, box in enumerate(x.smallest_boxes)]
    return tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)


def _format_classes(classes: Sequence[ClassCount]) -> str:
    if not classes:
        return "no classes"
    rows = [(c.label, c.name, c.objects, c.images) for c in classes]
    columns = 2 if len(rows) > CLASSES_IN_A_COLUMN else 1
    length = -(-len(rows) // columns)
    rows += [("",) * 4] * (columns * length - len(rows))
    lines = [sum(rows[line::length], ()) for line in range(length)]
    headers = ("label", "class", "objects", "images") * columns
    align = ("right", "left", "right", "right") * columns
    return tabulate(lines, headers, tablefmt="simple", colalign=align, disable_numparse=True)
