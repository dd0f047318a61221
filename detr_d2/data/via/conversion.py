"""Conversion of annotations of the VGG Image Annotator (VIA) to COCO's format."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from detr_d2.data.images import read_image
from detr_d2.data.via.project import ViaImage, ViaRegion
from detr_d2.utils.errors import ExampleCounter, UserError

logger = logging.getLogger(__name__)

# Mouse positions are rounded: outlines may exceed the image by this many pixels without a warning.
_TOLERANCE = 1.0
_DECIMALS = 2


@dataclass(frozen=True)
class ViaClasses:
    """Source of the classes of a VIA file."""

    attribute: str | None = None  # Region attribute that holds the class; None: the only one that the regions have.
    default: str | None = None  # Class of regions without the attribute; None: such regions are an error.
    names: Sequence[str] | None = None  # All classes, in the order of their ids; None: those of the regions, sorted.


def via_to_coco(
    images: Sequence[ViaImage], image_root: str, classes: ViaClasses | None = None, skip_unsupported: bool = False
) -> dict[str, Any]:
    """Return annotations in COCO's instances format, as a dict to be written as JSON.

    Ids count from 1. Sizes are those of the files, upright (EXIF rotation applied). Outlines are clipped to their
    image. Logs what was clipped, dropped or doubtful. Shows a progress bar on a terminal.

    Args:
        images: images from :func:`~detr_d2.data.via.project.read_via`, with file names relative to ``image_root``.
        skip_unsupported: True to leave out regions of other shapes than polygons, rectangles, circles and ellipses.

    Raises:
        UserError: an image or a region can't be used, or its class is unclear; the message names it.
    """
    notes = ExampleCounter()
    regions = _check_regions([region for image in images for region in image.regions], skip_unsupported, notes)
    classes = classes or ViaClasses()
    categories = _read_categories(regions, classes)
    ids = {name: number for number, name in enumerate(_ordered_names(categories, classes), start=1)}
    outlines = {region.name: region.outline() for region in regions}
    coco_images, annotations = [], []
    pairs = zip(images, _find_files(images, image_root), strict=True)
    for image_id, (image, path) in enumerate(tqdm(pairs, "images", len(images), disable=None, unit="image"), start=1):
        height, width = read_image(path, "RGB").shape[:2]
        coco_images.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        if image.bytes not in (-1, os.path.getsize(path)):
            notes.add("images have another file size than when they were annotated: were they resized since?", path)
        for name in (region.name for region in image.regions if region.name in outlines):
            geometry = _describe_outline(outlines[name], (height, width), name, notes)
            if geometry is not None:
                keys = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[categories[name]]}
                annotations.append({**keys, **geometry, "iscrowd": 0})
    for message, count, example in notes:
        logger.warning("%d %s E.g. %s.", count, message, example)
    coco_categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"info": {}, "images": coco_images, "annotations": annotations, "categories": coco_categories}


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


def _ordered_names(categories: Mapping[str, str], classes: ViaClasses) -> list[str]:
    """Return all class names in the order of their ids, given the class of each region by the region's name."""
    if classes.names is None:
        names = sorted(set(categories.values()))
        for a, b in pairwise(sorted(names, key=lambda name: (name.lower(), name))):
            if a.lower() == b.lower():
                logger.warning("The classes %r and %r differ in upper and lower case only: are they one?", a, b)
        return names
    names = list(classes.names)
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"The categories {', '.join(names)} are not all different and not empty: correct the list.")
    for region, name in categories.items():
        if name not in names:
            raise UserError(f"The class {name!r} of {region} is not among the categories {', '.join(names)}: add it.")
    return names


def _find_files(images: Sequence[ViaImage], image_root: str) -> list[str]:
    if not os.path.isdir(image_root):
        raise UserError(f"The image folder {image_root} does not exist.")
    paths = [os.path.join(image_root, image.file_name) for image in images]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images do not exist, e.g. {missing[0]}: give the folder that holds them, "
            "or remove them from the VIA project."
        )
    return paths


def _describe_outline(
    outline: np.ndarray, image_size: tuple[int, int], name: str, notes: ExampleCounter
) -> dict[str, Any] | None:
    """Return the box, area and segmentation of an outline; None if it has no area inside the image."""
    inside = clip(outline, image_size).round(_DECIMALS)
    # Shoelace formula, from the first point: the area of a point or a line is exactly 0.
    x, y = (inside - inside[:1]).T
    area = float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
    if area == 0:
        notes.add("regions have no area inside their image and were dropped.", name)
        return None
    if (outline < -_TOLERANCE).any() or (outline > np.array(image_size)[::-1] + _TOLERANCE).any():
        notes.add(
            "regions extend beyond their image and were clipped; if that is not meant, the image may have been resized "
            "or rotated since.",
            name,
        )
    low, high = inside.min(axis=0), inside.max(axis=0)
    return {
        "bbox": np.concatenate([low, high - low]).round(_DECIMALS).tolist(),
        "area": round(area, _DECIMALS),
        "segmentation": [inside.reshape(-1).tolist()],
    }


def clip(polygon: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Clip a polygon of (N, 2) x and y to an image of the given height and width; (0, 2) if it lies outside.

    Sutherland and Hodgman, Reentrant polygon clipping, CACM 1974: one side of the image after the other. Pieces that
    the image cuts a polygon into stay joined along the border.
    """
    height, width = image_size
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = sign * (polygon[:, axis] - limit)
        kept = []
        for i, point in enumerate(polygon):
            if (depth[i - 1] >= 0) != (depth[i] >= 0):
                share = depth[i - 1] / (depth[i - 1] - depth[i])
                crossing = polygon[i - 1] + share * (point - polygon[i - 1])
                crossing[axis] = limit
                kept.append(crossing)
            if depth[i] >= 0:
                kept.append(point)
        polygon = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return polygon
