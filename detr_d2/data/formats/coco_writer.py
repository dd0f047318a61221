"""Conversion of what the readers return to COCO's instances format."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from detr_d2.data.formats.image_files import ImageFinder, check_sizes, image_root
from detr_d2.data.formats.outlines import describe
from detr_d2.data.formats.records import AnnotatedDataset, AnnotatedImage, Source
from detr_d2.data.images import read_image_size
from detr_d2.utils.errors import ExampleCounter, UserError, abbreviate
from detr_d2.utils.progress import progress_bar


def to_coco(
    dataset: AnnotatedDataset, parts: Sequence[Sequence[AnnotatedImage]], source: Source
) -> tuple[list[dict[str, Any]], str]:
    """Return parts of a dataset in COCO's instances format, as dicts to be written as JSON, and their image folder.

    Ids count from 1, and the parts have the same classes. Sizes are those of the files, upright (EXIF rotation
    applied). Objects are clipped to their image. What is dropped or doubtful is counted in ``source.notes``. Shows a
    progress bar on a terminal.

    Raises:
        UserError: an image is missing, damaged or of another size than annotated, or no image has an object.
    """
    images = [image for part in parts for image in part]
    classes = _order_classes(dataset, images, source)
    finder = ImageFinder(dataset.image_roots, source.images)
    paths = [finder.find_all(part) for part in parts]
    root = image_root([path for part in paths for path in part], source.images)
    pairs = zip(parts, paths, strict=True)
    return [_convert(part, files, classes, root, source.notes) for part, files in pairs], root


def _order_classes(dataset: AnnotatedDataset, images: Sequence[AnnotatedImage], source: Source) -> list[str]:
    """Return the classes in the order of their ids: those that the user names, those of the format, or sorted."""
    if not images:
        raise UserError(f"{source.path} has no images: correct the path, or name the format with --format.")
    first = {item.category: item.name for image in images for item in image.objects}
    if not first:
        raise UserError(f"No image of {source.path} has an object that can be used: annotate boxes or polygons.")
    names = sorted(first) if dataset.classes is None else list(dataset.classes)
    names += sorted(first.keys() - set(names))
    for a, b in pairwise(sorted(names, key=lambda name: (name.lower(), name))):
        if a.lower() == b.lower():
            source.notes.add("pairs of classes differ in upper and lower case only: are they one?", f"{a!r} and {b!r}")
    if source.classes is None:
        return names
    requested = list(source.classes)
    if len(set(requested)) < len(requested) or "" in requested:
        raise UserError(f"The classes {', '.join(requested)} are not all different and not empty: correct the list.")
    if first.keys().isdisjoint(requested):
        raise UserError(f"No object is of the classes {', '.join(requested)}; there are: {abbreviate(names, 20)}.")
    for name in requested:
        if name not in first:
            source.notes.add("of the requested classes have no object.", repr(name))
    return requested


def _convert(
    images: Sequence[AnnotatedImage], paths: Sequence[str], classes: Sequence[str], root: str, notes: ExampleCounter
) -> dict[str, Any]:
    ids = {name: number for number, name in enumerate(classes, start=1)}
    sizes = [read_image_size(path) for path in progress_bar(paths, "images", unit="image")]
    check_sizes(images, sizes)
    coco_images, annotations = [], []
    for image_id, (image, path, (height, width)) in enumerate(zip(images, paths, sizes, strict=True), start=1):
        file_name = Path(os.path.relpath(path, root)).as_posix()
        coco_images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        if image.file_bytes not in (-1, os.path.getsize(path)):
            notes.add("images have another file size than when they were annotated: were they resized since?", path)
        scale = (width, height) if image.is_relative else (1, 1)
        for item in image.objects:
            if item.category not in ids:
                notes.add(
                    "objects are of classes that were not requested, and were dropped.",
                    f"a {item.category}, {item.name}",
                )
            elif (geometry := describe(item, (height, width), scale, notes)) is not None:
                keys = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[item.category]}
                annotations.append({**keys, **geometry, "iscrowd": int(item.is_crowd)})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"info": {}, "images": coco_images, "annotations": annotations, "categories": categories}
