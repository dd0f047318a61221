"""Reading annotations of the VGG Image Annotator (VIA), versions 1 and 2."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from detr_d2.data.via.polygons import ellipse, rectangle
from detr_d2.utils.errors import UserError

# What VIA can draw that encloses nothing.
_WITHOUT_AREA = ("point", "line", "polyline")


@dataclass(frozen=True)
class ViaRegion:
    """An outlined object."""

    name: str
    """What messages call it: "region 3 (counted from 0) of image 7.jpg in via.json"."""
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def is_supported(self) -> bool:
        """Whether the shape is of a kind that has an outline here."""
        return self.shape.get("name") in _OUTLINES

    def outline(self) -> np.ndarray:
        """(N, 2) x and y in pixels; may reach beyond the image.

        Raises:
            UserError: the shape is of a kind that encloses nothing or is not known, or its numbers are malformed.
        """
        kind = self.shape.get("name")
        if kind not in _OUTLINES:
            reason = "encloses nothing" if kind in _WITHOUT_AREA else "is not known"
            raise UserError(
                f"The shape {kind!r} of {self.name} {reason}: draw a {', '.join(sorted(_OUTLINES))}, or skip such "
                "regions with --skip-unsupported."
            )
        try:
            outline = _OUTLINES[kind](self.shape)
        except (KeyError, TypeError, ValueError) as e:
            reason = f"there is no {e}" if isinstance(e, KeyError) else str(e)
            raise UserError(f"The {kind} of {self.name} is malformed ({reason}): draw it again.") from e
        if not np.isfinite(outline).all():
            raise UserError(f"The {kind} of {self.name} holds numbers that are not finite: draw it again.")
        return outline

    def category(self, attribute: str) -> str:
        """The value of an attribute, as text; "" if there is none.

        Of a checkbox, which VIA stores as ``{"cat": true, "dog": false}``, the option that is ticked.

        Raises:
            UserError: several options are ticked.
        """
        value = self.attributes.get(attribute)
        if isinstance(value, Mapping):
            ticked = [name for name, state in value.items() if state]
            if len(ticked) > 1:
                raise UserError(
                    f"{attribute!r} of {self.name} has several options ticked, {', '.join(ticked)}: an object has one "
                    "class. Leave one ticked."
                )
            value = ticked[0] if ticked else ""
        return "" if value is None else str(value).strip()


@dataclass(frozen=True)
class ViaImage:
    file_name: str
    bytes: int
    """The file's size when it was annotated; -1 if VIA didn't know."""
    regions: Sequence[ViaRegion]


def read_via(path: str) -> list[ViaImage]:
    """Read a file of VIA 1 or 2: exported annotations (json), or a project of VIA 2.

    Returns:
        The images, those without regions too, sorted by file name.

    Raises:
        UserError: the file is missing, is none of VIA's, holds no images, or lists one twice.
    """
    entries = _entries(_load(path), path)
    images = [_image(entry, key, path) for key, entry in entries.items()]
    if not images:
        raise UserError(f"{path} holds no images: add images in VIA and save the project.")
    images.sort(key=lambda image: image.file_name)
    for image, other in pairwise(images):
        if image.file_name == other.file_name:
            raise UserError(
                f"{path} lists image {image.file_name} twice, with {len(image.regions)} and {len(other.regions)} "
                "regions: remove one of them in VIA."
            )
    return images


def _load(path: str) -> Any:
    try:
        with PathManager.open(path, "r", encoding="utf-8-sig") as file:
            return json.load(file)
    except (FileNotFoundError, IsADirectoryError) as e:
        raise UserError(f"The VIA file {path} does not exist: give the path of a json file.") from e
    except ValueError as e:
        raise UserError(
            f"{path} is not json ({e}): in VIA, save the project, or export annotations as json (not csv)."
        ) from e


def _entries(content: Any, path: str) -> Mapping[str, Any]:
    hint = "give annotations exported as json by VIA 1 or 2, or a project of VIA 2."
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, where VIA's files hold a dict: {hint}")
    if {"images", "annotations", "categories"} & set(content):
        raise UserError(f"{path} is no VIA file; it looks like COCO's format, which needs no converting.")
    if {"config", "metadata", "view"} <= set(content):
        raise UserError(f"{path} is a project of VIA 3, which can't be read: {hint}")
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, Mapping) or not all(
        isinstance(x, Mapping) and "filename" in x for x in entries.values()
    ):
        raise UserError(f"{path} is no VIA file, since its entries are not images with a 'filename': {hint}")
    return entries


def _image(entry: Mapping[str, Any], key: str, path: str) -> ViaImage:
    name = str(entry["filename"])
    # VIA 1 numbers the regions in a dict; VIA 2 has a list.
    regions = entry.get("regions") or []
    regions = list(regions.values()) if isinstance(regions, Mapping) else regions
    return ViaImage(name, _bytes(entry), [_region(x, i, name, path) for i, x in enumerate(regions)])


def _bytes(entry: Mapping[str, Any]) -> int:
    size = entry.get("size", -1)
    return size if isinstance(size, int) else -1


def _region(region: Any, index: int, image: str, path: str) -> ViaRegion:
    name = f"region {index} (counted from 0) of image {image} in {path}"
    shape = region.get("shape_attributes") if isinstance(region, Mapping) else None
    if not isinstance(shape, Mapping):
        raise UserError(f"There are no 'shape_attributes' in {name}: remove it, or draw it again.")
    attributes = region.get("region_attributes")
    return ViaRegion(name, shape, attributes if isinstance(attributes, Mapping) else {})


def _polygon(shape: Mapping[str, Any]) -> np.ndarray:
    x, y = shape["all_points_x"], shape["all_points_y"]
    if len(x) != len(y):
        raise ValueError(f"it has {len(x)} x and {len(y)} y")
    if len(x) < 3:
        raise ValueError(f"it has {len(x)} points, and needs 3")
    return np.array([x, y], dtype=np.float64).T


def _numbers(shape: Mapping[str, Any], *keys: str) -> list[float]:
    return [float(shape[key]) for key in keys]


def _circle(shape: Mapping[str, Any]) -> np.ndarray:
    cx, cy, r = _numbers(shape, "cx", "cy", "r")
    return ellipse(cx, cy, r, r)


_OUTLINES = {
    "polygon": _polygon,
    "rect": lambda shape: rectangle(*_numbers(shape, "x", "y", "width", "height")),
    "circle": _circle,
    # Only late versions of VIA 2 turn ellipses.
    "ellipse": lambda shape: ellipse(*_numbers(shape, "cx", "cy", "rx", "ry"), float(shape.get("theta", 0))),
}
