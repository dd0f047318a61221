"""From annotations of the VGG Image Annotator to COCO's format."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from detr_d2.data.images import read_image
from detr_d2.data.via.classes import ViaClasses, ordered_names, read_categories
from detr_d2.data.via.polygons import area, bounding_box, clip
from detr_d2.data.via.project import ViaImage, ViaRegion
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

# Mouse positions are rounded: what reaches so many pixels beyond the image is no mistake.
_TOLERANCE = 1.0
_DECIMALS = 2


def via_to_coco(
    images: Sequence[ViaImage], image_root: str, classes: ViaClasses | None = None, skip_unsupported: bool = False
) -> dict[str, Any]:
    """COCO's instances format: the dict to be written as json.

    Ids count from 1. Sizes are those of the files, upright (EXIF rotation applied). Outlines are clipped to their
    image. Logs what was clipped, dropped or doubtful. Shows a progress bar on a terminal.

    Args:
        images: as :func:`~detr_d2.data.via.project.read_via` returns them.
        image_root: the folder that their file names are relative to.
        classes: where the classes come from.
        skip_unsupported: leave out regions of other shapes than polygons, rectangles, circles and ellipses.

    Raises:
        UserError: names the image or region that can't be used.
    """
    notes = _Notes()
    supported = _supported([region for image in images for region in image.regions], skip_unsupported, notes)
    classes = classes or ViaClasses()
    categories = read_categories(supported, classes)
    ids = {name: number for number, name in enumerate(ordered_names(categories, classes), start=1)}
    outlines = {region.name: region.outline() for region in supported}
    paths = _find_files(images, image_root)
    coco_images, annotations = [], []
    pairs = zip(images, paths, strict=True)
    for image_id, (image, path) in enumerate(tqdm(pairs, "images", len(images), disable=None, unit="image"), start=1):
        height, width = read_image(path, "RGB").shape[:2]
        coco_images.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        if image.bytes not in (-1, os.path.getsize(path)):
            notes.add("images have another file size than when they were annotated: were they resized since?", path)
        for region in image.regions:
            if region.name not in outlines:
                continue
            if (geometry := _geometry(outlines[region.name], (height, width), region.name, notes)) is not None:
                keys = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[categories[region.name]]}
                annotations.append({**keys, **geometry, "iscrowd": 0})
    notes.log()
    listed = [{"id": number, "name": name} for name, number in ids.items()]
    return {"info": {}, "images": coco_images, "annotations": annotations, "categories": listed}


def split_images(coco: dict[str, Any], val_share: float, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the images, with their annotations, at random into training and validation.

    Both keep all categories, and the ids of images and annotations.

    Args:
        val_share: of the images for validation, in (0, 1); at least one image is left to either part.
        seed: the same seed divides the same images alike.

    Raises:
        UserError: the share is not in (0, 1), or there are not two images.
    """
    count = len(coco["images"])
    if not 0 < val_share < 1:
        raise UserError(f"The share of images for validation is {val_share}: give a number between 0 and 1, as 0.2.")
    if count < 2:
        raise UserError(f"{count} image can't be divided into training and validation.")
    num_val = min(max(round(val_share * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    val_ids = {coco["images"][index]["id"] for index in order[:num_val]}
    train, val = (
        {
            **coco,
            "images": [x for x in coco["images"] if (x["id"] in val_ids) == is_val],
            "annotations": [x for x in coco["annotations"] if (x["image_id"] in val_ids) == is_val],
        }
        for is_val in (False, True)
    )
    unseen = {x["category_id"] for x in val["annotations"]} - {x["category_id"] for x in train["annotations"]}
    if unseen:
        names = [x["name"] for x in coco["categories"] if x["id"] in unseen]
        logger.warning(
            "Only validation images show %s, which can't be learned: take another seed, or annotate more images.",
            ", ".join(names),
        )
    return train, val


class _Notes:
    """Counts what happened to images and regions, and logs each kind once, with its first example."""

    def __init__(self) -> None:
        self._counts = Counter()
        self._examples: dict[str, str] = {}

    def add(self, what: str, example: str) -> None:
        self._counts[what] += 1
        self._examples.setdefault(what, example)

    def log(self) -> None:
        for what, count in self._counts.items():
            logger.warning("%d %s E.g. %s.", count, what, self._examples[what])


def _supported(regions: Sequence[ViaRegion], skip_unsupported: bool, notes: _Notes) -> list[ViaRegion]:
    if not regions:
        raise UserError("No image has a region: outline objects in VIA first.")
    if not skip_unsupported:
        return list(regions)
    supported = [region for region in regions if region.is_supported]
    for region in regions:
        if not region.is_supported:
            notes.add(
                "regions of shapes without an outline were skipped.", f"a {region.shape.get('name')}, {region.name}"
            )
    if not supported:
        raise UserError(f"All {len(regions)} regions are of shapes without an outline: draw polygons or rectangles.")
    return supported


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


def _geometry(outline: np.ndarray, image_size: tuple[int, int], name: str, notes: _Notes) -> dict[str, Any] | None:
    """What an annotation tells of an outline; None if it has no area inside the image."""
    inside = clip(outline, image_size).round(_DECIMALS)
    if area(inside) == 0:
        notes.add("regions have no area inside their image and were dropped.", name)
        return None
    if (outline < -_TOLERANCE).any() or (outline > np.array(image_size)[::-1] + _TOLERANCE).any():
        notes.add(
            "regions reach beyond their image and were clipped; if that is not meant, the image may have been resized "
            "or rotated since.",
            name,
        )
    box = bounding_box(inside).round(_DECIMALS)
    return {
        "bbox": box.tolist(),
        "area": round(area(inside), _DECIMALS),
        "segmentation": [inside.reshape(-1).tolist()],
    }
