"""Conversion of annotations of the VGG Image Annotator (VIA), versions 1 and 2."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_d2.data.formats.coco_writer import to_coco
from detr_d2.data.formats.records import AnnotatedDataset, AnnotatedImage, AnnotatedObject, Source
from detr_d2.data.formats.via_file import ViaImage, ViaRegion, read_via
from detr_d2.utils.errors import ExampleCounter, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViaClasses:
    """Source of the classes of a VIA file."""

    attribute: str | None = None  # Region attribute that holds the class; None: the only one that the regions have.
    default: str | None = None  # Class of regions without the attribute; None: such regions are an error.
    names: Sequence[str] | None = None  # All classes, in the order of their ids; None: those of the regions, sorted.


def detect(source: Source) -> str | None:
    """Return what looks like a file of VIA at the path of a source; None if nothing does."""
    file = source.find_json(_is_via)
    return file and f"{file} with images that have 'filename' and 'regions'"


def read(source: Source) -> AnnotatedDataset:
    """Read a project of VIA, or annotations that it exported as JSON; shapes without an outline are dropped."""
    file = source.find_json(_is_via) or source.path
    classes = ViaClasses(source.class_attribute, source.default_class)
    return _to_dataset(read_via(str(file)), file.parent, classes, True, source.notes)


def via_to_coco(
    images: Sequence[ViaImage], image_root: str, classes: ViaClasses | None = None, skip_unsupported: bool = False
) -> dict[str, Any]:
    """Return annotations in COCO's instances format, as :func:`~detr_d2.data.formats.coco_writer.to_coco`.

    Logs what was clipped, dropped or doubtful.

    Args:
        images: images from :func:`~detr_d2.data.formats.via_file.read_via`, with names relative to ``image_root``.
        skip_unsupported: True to leave out regions of other shapes than polygons, rectangles, circles and ellipses.

    Raises:
        UserError: an image or a region can't be used, or its class is unclear; the message names it.
    """
    root, classes = Path(image_root), classes or ViaClasses()
    source = Source(root, root, classes.names)
    dataset = _to_dataset(images, root, classes, skip_unsupported, source.notes)
    (coco,), _ = to_coco(dataset, [dataset.images], source)
    for line in source.notes.lines():
        logger.warning("%s", line)
    return coco


def _is_via(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    images = content.get("_via_img_metadata", content)
    first = next(iter(images.values()), None) if isinstance(images, Mapping) else None
    return "_via_img_metadata" in content or (isinstance(first, Mapping) and {"filename", "regions"} <= first.keys())


def _to_dataset(
    images: Sequence[ViaImage], folder: Path, classes: ViaClasses, skip_unsupported: bool, notes: ExampleCounter
) -> AnnotatedDataset:
    regions = _check_regions([region for image in images for region in image.regions], skip_unsupported, notes)
    categories = _read_categories(regions, classes)
    for region, name in categories.items():
        if classes.names is not None and name not in classes.names:
            listed = ", ".join(classes.names)
            raise UserError(f"The class {name!r} of {region} is not among the categories {listed}: add it.")
    return AnnotatedDataset([_to_image(image, categories) for image in images], [folder], classes.names)


def _to_image(image: ViaImage, categories: Mapping[str, str]) -> AnnotatedImage:
    objects = [
        AnnotatedObject(region.name, categories[region.name], segmentation=[region.outline().reshape(-1).tolist()])
        for region in image.regions
        if region.name in categories
    ]
    return AnnotatedImage((image.file_name,), f"{image.file_name} in VIA", objects, file_bytes=image.bytes)


def _check_regions(regions: list[ViaRegion], skip_unsupported: bool, notes: ExampleCounter) -> list[ViaRegion]:
    if not regions:
        raise UserError("No image has a region: outline objects in VIA first.")
    if not skip_unsupported:
        return regions
    supported = [x for x in regions if x.is_supported]
    for x in regions:
        if not x.is_supported:
            notes.add("regions of shapes without an outline were skipped.", f"a {x.shape.get('name')}, {x.name}")
    if not supported:
        raise UserError(
            f"All {len(regions)} regions are of shapes without an outline: outline objects as polygons or rectangles."
        )
    return supported


def _read_categories(regions: Sequence[ViaRegion], classes: ViaClasses) -> dict[str, str]:
    """Return the class of each region, by the region's name."""
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


def _class_attribute(regions: Sequence[ViaRegion], classes: ViaClasses) -> str | None:
    counts = Counter(name for region in regions for name in region.attributes)
    known = ", ".join(f"{name} ({count} of {len(regions)} regions)" for name, count in counts.most_common())
    if classes.attribute is not None:
        if classes.attribute not in counts:
            raise UserError(f"No region has the attribute {classes.attribute!r}; there are: {known or 'none'}.")
        return classes.attribute
    if len(counts) > 1:
        raise UserError(f"The regions have several attributes: {known}. Set the one of the class: --class-attribute.")
    if not counts and classes.default is None:
        raise UserError("The regions have no attribute that could hold their class: name it with --default-class.")
    return next(iter(counts), None)
