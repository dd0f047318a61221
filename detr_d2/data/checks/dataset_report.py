"""All that is known about a dataset before training: its figures, and what is wrong with it."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tabulate import tabulate

from detr_d2.data.checks.annotation_checks import check_annotations
from detr_d2.data.checks.annotation_table import AnnotationTable
from detr_d2.data.checks.class_checks import check_num_classes, check_same_classes, check_shared_images
from detr_d2.data.checks.dataset_loading import LoadedDataset
from detr_d2.data.checks.dataset_statistics import DatasetStatistics, SmallBox, compute_statistics
from detr_d2.data.checks.expectations import Expectations
from detr_d2.data.checks.findings import SEVERITIES, Finding, count_severities
from detr_d2.data.checks.image_checks import check_files_exist, check_image_files

LINE_LENGTH = 100
# Above this many, the classes stand in two columns.
CLASSES_IN_A_COLUMN = 24


@dataclass(frozen=True)
class DatasetReport:
    """What is known about one dataset.

    Attributes:
        name: of the dataset, or its file.
        num_queries: of the model, if known.
        statistics: its figures.
        findings: what is wrong with it, errors first.
    """

    name: str
    num_queries: int | None
    statistics: DatasetStatistics
    findings: list[Finding]

    def summary(self) -> str:
        """The figures in one line."""
        x = self.statistics
        queries = f" ({self.num_queries} queries)" if self.num_queries else ""
        smallest = f"; smallest box {_size(x.smallest_boxes[0])}" if x.smallest_boxes else ""
        return (
            f"{x.images} images, {x.images_without_objects} ({x.empty_share:.1%}) without objects; {x.objects} objects "
            f"of {sum(c.objects > 0 for c in x.classes)} classes; {x.crowds} crowds ({x.crowd_share:.1%}); objects "
            f"an image: median {x.median_objects:g}, at most {x.max_objects}{queries}{smallest}"
        )

    def to_dict(self) -> dict:
        """For json."""
        return asdict(self)


@dataclass(frozen=True)
class CheckResult:
    """Reports of several datasets, and what is wrong between them or with the model's number of classes."""

    datasets: list[DatasetReport]
    between_datasets: list[Finding]

    def findings(self) -> list[Finding]:
        """All of them."""
        return [*self.between_datasets, *(finding for report in self.datasets for finding in report.findings)]

    def to_dict(self) -> dict:
        """For json."""
        return {**asdict(self), "counts": count_severities(self.findings())}


def check_loaded(
    datasets: Sequence[LoadedDataset],
    num_classes: int | None = None,
    num_queries: int | None = None,
    open_images: bool = False,
    masks: bool = False,
) -> CheckResult:
    """Check datasets, and what they have to do with each other.

    Args:
        datasets: those that are no lists of records are looked at for their classes only.
        num_classes: of the model; None if unknown.
        num_queries: the most objects that the model finds in an image; None if unknown.
        open_images: whether to open and decode all image files, which takes minutes for 100,000.
        masks: whether the model learns masks.
    """
    classes = {x.name: x.classes for x in datasets}
    lists = [x for x in datasets if isinstance(x.records, list)]
    between = [
        *check_same_classes(classes),
        *check_num_classes(classes, num_classes, [x.name for x in lists if x.panoptic]),
        *check_shared_images(
            {x.name: x.records for x in lists if x.train}, {x.name: x.records for x in lists if not x.train}
        ),
    ]
    reports = []
    for dataset in lists:
        expected = Expectations(dataset.train, num_classes, num_queries, dataset.classes, masks and dataset.train)
        reports.append(_check(dataset, expected, open_images))
    return CheckResult(reports, between)


def _check(dataset: LoadedDataset, expected: Expectations, open_images: bool) -> DatasetReport:
    records = dataset.records
    table = AnnotationTable(records)
    files = [*check_files_exist(records), *check_files_exist(records, "pan_seg_file_name", "panoptic map")]
    findings = [*dataset.findings, *files, *check_annotations(table, expected)]
    if open_images:
        findings += check_image_files(records, dataset.name)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    statistics = compute_statistics(records, table, expected.classes)
    return DatasetReport(dataset.name, expected.num_queries, statistics, findings)


def format_result(result: CheckResult) -> str:
    """All reports as text."""
    parts = [format_report(report) for report in result.datasets]
    if result.between_datasets:
        parts.append("Between datasets and model\n" + format_findings(result.between_datasets))
    if len(parts) > 1:
        parts.append(f"In all: {describe_counts(result.findings())}")
    return "\n\n\n".join(parts) + "\n"


def format_report(report: DatasetReport) -> str:
    """The report as text: figures, classes, findings."""
    parts = (
        f"{report.name}\n{'=' * len(report.name)}",
        _format_figures(report.statistics, report.num_queries),
        _format_classes(report.statistics),
        format_findings(report.findings),
    )
    return "\n\n".join(parts)


def format_findings(findings: Sequence[Finding]) -> str:
    """One paragraph a finding, and how many there are of each severity."""
    paragraphs = [
        textwrap.fill(
            f"{x.severity:<8}[{x.code}] {x.message}",
            LINE_LENGTH,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for x in findings
    ]
    return "\n".join([*paragraphs, describe_counts(findings)])


def describe_counts(findings: Sequence[Finding]) -> str:
    counts = count_severities(findings)
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())


def _format_figures(x: DatasetStatistics, num_queries: int | None) -> str:
    queries = f"the model has {num_queries} queries" if num_queries else ""
    rows = [
        ("images", x.images, ""),
        ("images without objects", x.images_without_objects, f"{x.empty_share:.1%} of the images"),
        ("objects", x.objects, f"{x.small} small, {x.medium} medium, {x.large} large (COCO's limits, boxes)"),
        ("crowds", x.crowds, f"{x.crowd_share:.1%} of the annotations; not trained on"),
        ("objects an image: median", f"{x.median_objects:g}", ""),
        ("objects an image: most", x.max_objects, "; ".join(filter(None, [x.most_objects_in, queries]))),
        ("classes with objects", sum(c.objects > 0 for c in x.classes), f"of {len(x.classes)}"),
    ]
    for title, size in (("smallest image", x.smallest_image), ("largest image", x.largest_image)):
        rows += [(title, f"{size[0]} x {size[1]}", "width x height")] if size else []
    rows += [("smallest box" if i == 0 else "", _size(box), box.annotation) for i, box in enumerate(x.smallest_boxes)]
    return tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)


def _format_classes(x: DatasetStatistics) -> str:
    if not x.classes:
        return "no classes"
    rows = [(c.label, c.name, c.objects, c.images) for c in x.classes]
    columns = min(2, -(-len(rows) // CLASSES_IN_A_COLUMN))
    length = -(-len(rows) // columns)
    rows += [("",) * 4] * (columns * length - len(rows))
    lines = [sum(rows[line::length], ()) for line in range(length)]
    headers = ("label", "class", "objects", "images") * columns
    align = ("right", "left", "right", "right") * columns
    return tabulate(lines, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def _size(box: SmallBox) -> str:
    return f"{box.width:g} x {box.height:g}"
