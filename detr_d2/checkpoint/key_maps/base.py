"""What a key map is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Rules = tuple[tuple[str, str | None], ...]
"""(pattern, replacement): regular expressions for a whole name. None: this tensor is not for our model.

Patterns of formats that are written, too, hold escaped text and groups, and no group in another: see :func:`invert`.
"""


@dataclass(frozen=True)
class CheckpointFormat:
    """How to tell a checkpoint by its tensors' names, and what our names for them are."""

    name: str
    """What users are told it is."""
    signature: tuple[str, ...]
    """Patterns of whole names. A checkpoint is of this format if each fits one of its names."""
    rules: Rules
    """The first rule that fits a name counts. A name that none fits is kept: comparing with the model finds it."""
    backbone_only: bool = False
    has_coco_ids: bool = False
    """The rows of the class head may be COCO's category ids instead of contiguous classes."""
    splits_in_proj: bool = False
    """An attention's query, key and value projections are three tensors, not one."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that go with every model of the format, and that no tensor tells."""

    def matches(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(pattern, name) for name in names) for pattern in self.signature)

    def native_name(self, name: str) -> str | None:
        """Our name of a tensor, None if it has no place in our model."""
        found, replaced = _apply(self.rules, name)
        return replaced if found else name

    def foreign_name(self, name: str) -> str | None:
        """The format's name of our tensor, None if it has none."""
        return _apply(self._inverse, name)[1]

    @cached_property
    def _inverse(self) -> Rules:
        return invert(self.rules)


def invert(rules: Rules) -> Rules:
    """The rules that lead back. Where two lead to the same name, the first one counts."""
    return tuple(_invert(pattern, replacement) for pattern, replacement in rules if replacement is not None)


def _invert(pattern: str, replacement: str) -> tuple[str, str]:
    # Groups become what they were referred to by, and the other way round.
    texts = re.split(r"\\(\d)", replacement)
    order = [int(x) for x in texts[1::2]]
    parts = list(_parts(pattern))
    groups = [text for is_group, text in parts if is_group]
    back = "".join(groups[int(x) - 1] if i % 2 else re.escape(x) for i, x in enumerate(texts))
    indices = iter(range(1, len(groups) + 1))
    name = "".join(
        rf"\{order.index(next(indices)) + 1}" if is_group else re.sub(r"\\(.)", r"\1", text) for is_group, text in parts
    )
    return back, name


def _parts(pattern: str) -> Iterable[tuple[bool, str]]:
    """Whether it is a group, and its text, for every part of a pattern."""
    start, depth = 0, 0
    for match in re.finditer(r"\\.|[()]", pattern):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if (match[0] == "(" and depth == 1) or (match[0] == ")" and depth == 0):
            end = match.start() if depth else match.end()
            if end > start:
                yield not depth, pattern[start:end]
            start = end
    if start < len(pattern):
        yield False, pattern[start:]


def _apply(rules: Rules, name: str) -> tuple[bool, str | None]:
    """Whether a rule fits, and what it makes of the name."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return True, None if replacement is None else match.expand(replacement)
    return False, None
