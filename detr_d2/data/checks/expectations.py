"""What a dataset is checked against."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Expectations:
    """What a dataset is meant for.

    Attributes:
        train: whether it is trained on, not only evaluated on.
        num_classes: labels are in [0, num_classes); None if unknown.
        num_queries: the most objects that a model finds in an image; None if unknown.
        classes: names by label; None if unknown.
        masks: whether every object needs a mask.
    """

    train: bool
    num_classes: int | None = None
    num_queries: int | None = None
    classes: Sequence[str] | None = None
    masks: bool = False
