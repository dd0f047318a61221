"""How lists of names appear in messages."""

from collections.abc import Sequence

MAX_NAMES_SHOWN = 5


def abbreviate(names: Sequence[object]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(str(item) for item in names[:MAX_NAMES_SHOWN])
    return shown if len(names) <= MAX_NAMES_SHOWN else f"{shown}, … {len(names) - MAX_NAMES_SHOWN} more"


def describe_difference(first: str, expected: Sequence[str], second: str, classes: Sequence[str]) -> str:
    """In what the class names of the datasets ``first`` and ``second`` differ."""
    only_first = [item for item in expected if item not in classes]
    only_second = [item for item in classes if item not in expected]
    parts = [f"only {first!r} has {abbreviate(only_first)}"] if only_first else []
    parts += [f"only {second!r} has {abbreviate(only_second)}"] if only_second else []
    if parts:
        return "; ".join(parts)
    return f"the same names in another order, {abbreviate(expected)} and {abbreviate(classes)}"
