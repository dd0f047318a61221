"""Findings of the checks of datasets, and reports of them as text and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import TextWrapper
from typing import Any, Literal

from tabulate import tabulate

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

LINE_LENGTH = 100
# Above this number, the classes are listed in two columns.
CLASSES_IN_A_COLUMN = 24
_SUMMARY = (
    "{images} images, {images_without_objects} ({empty_share:.1%}) without objects; {objects} objects of "
    "{used_classes} classes; {crowds} crowds ({crowd_share:.1%}); objects per image: median {median_objects:g}, "
    "at most {max_objects}"
)
_ROWS = (
    ("images", "{images}", ""),
    ("images without objects", "{images_without_objects}", "{empty_share:.1%} of the images"),
    ("objects", "{objects}", "{small} small, {medium} medium, {large} large (COCO's limits, boxes)"),
    ("crowds", "{crowds}", "{crowd_share:.1%} of the annotations; not trained on"),
    ("objects per image: median", "{median_objects:g}", ""),
    ("objects per image: max", "{max_objects}", "{most_objects_in}{queries}"),
    ("classes with objects", "{used_classes}", "of {num_classes}"),
)


@dataclass(frozen=True)
class Finding:
    """One kind of fault, however often it occurs."""

    # "error": training or evaluation fails or is wrong; "warning": something is dropped or doubtful.
    severity: Severity
    code: str  # A short name that stays the same, for programs.
    message: str  # The fault, its place and its fix.
    count: int = 1
    example: str = ""  # The first annotation, image or class with it.


@dataclass(frozen=True)
class DatasetReport:
    """Statistics, see ``annotation_checks.compute_statistics``, and findings, errors first, of one dataset."""

    name: str
    num_queries: int | None
    statistics: dict[str, Any]
    findings: list[Finding]

    def summary(self) -> str:
        """Return the statistics in one line."""
        queries = f" ({self.num_queries} queries)" if self.num_queries else ""
        smallest = [f"; smallest box {_size(box)}" for box in self.statistics["smallest_boxes"][:1]]
        return "".join([_SUMMARY.format(**_values(self.statistics)), queries, *smallest])


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
        return {**asdict(self), "counts": _count_severities(self.findings())}


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
    classes = _format_classes(report.statistics["classes"])
    return "\n\n".join([heading, statistics, classes, _format_findings(report.findings)])


def _format_findings(findings: Sequence[Finding]) -> str:
    """Format one paragraph per finding, and the number of findings of each severity."""
    wrapper = TextWrapper(LINE_LENGTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
    paragraphs = [wrapper.fill(f"{x.severity:<8}[{x.code}] {x.message}") for x in findings]
    return "\n".join([*paragraphs, _describe_counts(findings)])


def _describe_counts(findings: Sequence[Finding]) -> str:
    counts = _count_severities(findings)
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())


def _count_severities(findings: Sequence[Finding]) -> dict[str, int]:
    return {x: sum(finding.severity == x for finding in findings) for x in SEVERITIES}


def _format_statistics(statistics: dict[str, Any], num_queries: int | None) -> str:
    separator = "; " if statistics["most_objects_in"] else ""
    queries = f"{separator}the model has {num_queries} queries" if num_queries else ""
    values = {**_values(statistics), "queries": queries}
    rows = [[text.format(**values) for text in row] for row in _ROWS]
    for key in ("smallest_image", "largest_image"):
        if statistics[key]:
            rows.append([key.replace("_", " "), "{} x {}".format(*statistics[key]), "width x height"])
    for index, box in enumerate(statistics["smallest_boxes"]):
        rows.append(["" if index else "smallest box", _size(box), box["annotation"]])
    return tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)


def _values(statistics: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics, with shares and numbers computed from them."""
    images, crowds, classes = statistics["images"], statistics["crowds"], statistics["classes"]
    return {
        **statistics,
        "empty_share": statistics["images_without_objects"] / max(images, 1),
        "crowd_share": crowds / max(crowds + statistics["objects"], 1),
        "num_classes": len(classes),
        "used_classes": sum(x["objects"] > 0 for x in classes),
    }


def _format_classes(classes: Sequence[dict[str, Any]]) -> str:
    if not classes:
        return "no classes"
    rows = [tuple(x.values()) for x in classes]
    columns = 2 if len(rows) > CLASSES_IN_A_COLUMN else 1
    length = -(-len(rows) // columns)
    rows += [("",) * 4] * (columns * length - len(rows))
    lines = [sum(rows[line::length], ()) for line in range(length)]
    headers = ("label", "class", "objects", "images") * columns
    align = ("right", "left", "right", "right") * columns
    return tabulate(lines, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def _size(box: dict[str, Any]) -> str:
    return "{width:g} x {height:g}".format(**box)
