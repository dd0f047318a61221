"""Exceptions that commands turn into exit codes, parts of their messages, and a counter of mistakes in data."""

import difflib
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence


class UserError(ValueError):
    """Wrong input with a known fix: a config key, a file, an annotation.

    The message names what is wrong and what to do. The commands print it without a traceback.
    """


class Stopped(SystemExit):
    """End of a run by a signal, after a checkpoint was saved: the process ends with the exit code that shells use."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.code - 128).name}; the run can be continued with --resume"


def abbreviate(names: Sequence[object], limit: int = 5) -> str:
    """List the first ``limit`` names for a message, and how many more there are."""
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown}, … {len(names) - limit} more"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", limit: int = 3) -> str:
    """Return a question with up to ``limit`` known names that resemble ``name``, or ``otherwise`` if none does."""
    similar = difflib.get_close_matches(name, known, limit)
    return f"Did you mean {' or '.join(similar)}?" if similar else otherwise


class ExampleCounter:
    """Counter of occurrences by kind that keeps the first example of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str, count: int = 1) -> bool:
        """Count ``count`` occurrences of ``kind``. Return True for the first of this kind, which the caller may log."""
        is_first = kind not in self.examples
        self.counts[kind] += count
        self.examples.setdefault(kind, example)
        return is_first

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        """Yield each kind, its count and its first example, in the order of their first occurrence."""
        return ((kind, count, self.examples[kind]) for kind, count in self.counts.items())

    def lines(self) -> list[str]:
        """Return a line per kind: its count, what it is, and the first example."""
        return [f"{count} {kind} E.g. {example}." for kind, count, example in self]
