"""What a key map is."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Rules = tuple[tuple[str, str | None], ...]
"""(pattern, replacement): regular expressions for a whole name. None: this tensor is not for our model."""


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

    def matches(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(pattern, name) for name in names) for pattern in self.signature)

    def native_name(self, name: str) -> str | None:
        """Our name of a tensor, None if it has no place in our model."""
        for pattern, replacement in self.rules:
            if match := re.fullmatch(pattern, name):
                return None if replacement is None else match.expand(replacement)
        return name
