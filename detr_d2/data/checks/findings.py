"""What the checks say about a dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One kind of fault, however often it occurs.

    Attributes:
        severity: "error": training or evaluation fails or is wrong; "warning": something is dropped or
            doubtful; "note": good to know.
        code: a short name that stays the same, for programs.
        message: what is wrong, where, and what to do.
        count: how often it occurs.
        example: the annotation, image or class that was met first.
    """

    severity: Severity
    code: str
    message: str
    count: int = 1
    example: str = ""


class Fault(NamedTuple):
    """A row of a table of faults: how severe in training data and in evaluation data, and what to say.

    ``text`` is formatted with ``count``, ``total`` and ``example``. A severity of None says nothing.
    """

    train: Severity | None
    evaluation: Severity | None
    text: str


class FaultCounter:
    """Counts faults by code while a dataset is gone through, and keeps the first example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, code: str, example: str) -> None:
        self._counts[code] = self._counts.get(code, 0) + 1
        self._examples.setdefault(code, example)

    def findings(self, faults: Mapping[str, Fault], train: bool, totals: Mapping[str, int]) -> list[Finding]:
        """In the order of the table ``faults``; ``totals`` holds the total by a code's first word."""
        found = []
        for code, fault in faults.items():
            severity = fault.train if train else fault.evaluation
            if code not in self._counts or severity is None:
                continue
            count, example = self._counts[code], self._examples[code]
            text = fault.text.format(count=count, total=totals.get(code.split("-")[0], count), example=example)
            found.append(Finding(severity, code, text, count, example))
        return found


def count_severities(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each severity."""
    return {x: sum(finding.severity == x for finding in findings) for x in SEVERITIES}
