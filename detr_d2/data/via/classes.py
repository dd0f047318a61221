"""The classes of regions that were outlined in the VGG Image Annotator."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from detr_d2.data.via.project import ViaRegion
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViaClasses:
    """Where the classes of a VIA file come from."""

    attribute: str | None = None
    """The region attribute that holds the class; None: the only one that the regions have."""
    default: str | None = None
    """The class of regions without the attribute; None: they are an error."""
    names: Sequence[str] | None = None
    """All classes, in the order of their ids; None: those that there are, sorted."""


def read_categories(regions: Sequence[ViaRegion], classes: ViaClasses) -> dict[str, str]:
    """The class of each region, by the region's name.

    Raises:
        UserError: it is not clear which attribute holds the class, or a region has none.
    """
    attribute = _class_attribute(regions, classes)
    categories = {}
    for region in regions:
        name = (region.category(attribute) if attribute else "") or classes.default
        if not name:
            raise UserError(
                f"{region.name} has no {attribute!r}, the attribute that holds the class: name it in VIA, or set the "
                "class of such regions with --default-class."
            )
        categories[region.name] = name
    return categories


def ordered_names(categories: Mapping[str, str], classes: ViaClasses) -> list[str]:
    """All class names, in the order of their ids.

    Args:
        categories: as :func:`read_categories` returns them.
        classes: where the classes come from.

    Raises:
        UserError: a region's class is not among those that were asked for.
    """
    if classes.names is None:
        names = sorted(set(categories.values()))
        _warn_about_case(names)
        return names
    names = list(classes.names)
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"The categories {', '.join(names)} are not all different and not empty: correct the list.")
    for region, name in categories.items():
        if name not in names:
            raise UserError(f"The class {name!r} of {region} is not among the categories {', '.join(names)}: add it.")
    return names


def _class_attribute(regions: Sequence[ViaRegion], classes: ViaClasses) -> str | None:
    counts = Counter(name for region in regions for name in region.attributes)
    told = ", ".join(f"{name} ({count} of {len(regions)} regions)" for name, count in counts.most_common())
    if classes.attribute is not None:
        if classes.attribute not in counts:
            raise UserError(f"No region has the attribute {classes.attribute!r}; there are: {told or 'none'}.")
        return classes.attribute
    if len(counts) > 1:
        raise UserError(f"The regions have several attributes: {told}. Say with --class-attribute which is the class.")
    if not counts and classes.default is None:
        raise UserError("The regions have no attribute that could hold their class: name it with --default-class.")
    return next(iter(counts), None)


def _warn_about_case(names: Sequence[str]) -> None:
    for a, b in pairwise(sorted(names, key=lambda name: (name.lower(), name))):
        if a.lower() == b.lower():
            logger.warning("The classes %r and %r differ in upper and lower case only: are they one?", a, b)
