"""Findings of the checks of a dataset, and the expectations that it is checked against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Expectations:
    """Use that a dataset is meant for; None is unknown.

    Attributes:
        train: whether it is trained on, not only evaluated on.
        num_classes: labels are in [0, num_classes).
        num_queries: the maximum number of objects that the model finds in an image.
        classes: names by label.
        masks: whether every object needs a mask.
    """

    train: bool
    num_classes: int | None = None
    num_queries: int | None = None
    classes: Sequence[str] | None = None
    masks: bool = False


@dataclass(frozen=True)
class Finding:
    """One kind of fault, however often it occurs.

    Attributes:
        severity: "error": training or evaluation fails or is wrong; "warning": something is dropped or
            doubtful; "note": good to know.
        code: a short name that stays the same, for programs.
        message: what is wrong, where, and what to do.
        count: how often it occurs.
        example: the first annotation, image or class.
    """

    severity: Severity
    code: str
    message: str
    count: int = 1
    example: str = ""


def count_severities(findings: Sequence[Finding]) -> dict[str, int]:
    """Count the findings of each severity."""
    return {x: sum(finding.severity == x for finding in findings) for x in SEVERITIES}
