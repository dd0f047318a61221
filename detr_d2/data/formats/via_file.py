"""Reader of annotations of the VGG Image Annotator (VIA), versions 1 and 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from detr_d2.utils.errors import UserError
from detr_d2.utils.files import read_json

# Shapes of VIA that enclose no area.
_WITHOUT_AREA = ("point", "line", "polyline")
# A polygon with this many corners on an ellipse lacks 0.2 % of its area.
_ELLIPSE_CORNERS = 64


@dataclass(frozen=True)
class ViaRegion:
    """Outlined object."""

    name: str  # Display name, used in messages: "region 3 (counted from 0) of image 7.jpg in via.json".
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def is_supported(self) -> bool:
        """True if the shape has an outline."""
        return self.shape.get("name") in _OUTLINES

    def outline(self) -> np.ndarray:
        """Return the outline as a polygon: (N, 2) x and y in pixels, possibly beyond the image.

        Raises:
            UserError: the shape encloses nothing or is unknown, or its numbers are malformed.
        """
        kind = self.shape.get("name")
        if not self.is_supported:
            reason = "encloses nothing" if kind in _WITHOUT_AREA else "is unknown"
            raise UserError(
                f"The shape {kind!r} of {self.name} {reason}: outline it as {', '.join(sorted(_OUTLINES))}, or skip "
                "such regions with --skip-unsupported."
            )
        try:
            outline = _OUTLINES[kind](self.shape)
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            reason = f"there is no {e}" if isinstance(e, KeyError) else str(e)
            raise UserError(f"The {kind} of {self.name} is malformed ({reason}): outline it again.") from e
        if not np.isfinite(outline).all():
            raise UserError(f"The {kind} of {self.name} has numbers that are not finite: outline it again.")
        return outline

    def category(self, attribute: str) -> str:
        """Return the value of an attribute as a string; "" if it is missing.

        For a checkbox, which VIA stores as ``{"cat": true, "dog": false}``, return the ticked option.

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
    """Image with its outlined objects."""

    file_name: str
    bytes: int  # Size of the file when it was annotated; -1 if unknown.
    regions: Sequence[ViaRegion]


def read_via(path: str) -> list[ViaImage]:
    """Read a file of VIA 1 or 2: annotations exported as JSON, or a project of VIA 2.

    All images are returned, also those without regions, sorted by file name.

    Raises:
        UserError: the file is missing, is not a VIA file, has no images, or lists one twice.
    """
    fix = "in VIA, save the project, or export annotations as JSON (not CSV)"
    entries = _find_entries(read_json(path, "a VIA file in JSON", fix), path)
    images = sorted((_read_image(entry, path) for entry in entries.values()), key=lambda image: image.file_name)
    if not images:
        raise UserError(f"{path} has no images: add images in VIA and save the project.")
    for image, other in pairwise(images):
        if image.file_name == other.file_name:
            raise UserError(
                f"{path} lists image {image.file_name} twice, with {len(image.regions)} and {len(other.regions)} "
                "regions: remove one of them in VIA."
            )
    return images


def _find_entries(content: Any, path: str) -> Mapping[str, Any]:
    hint = "give annotations exported as JSON by VIA 1 or 2, or a project of VIA 2."
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, where VIA's files hold a dict: {hint}")
    if {"images", "annotations", "categories"} & set(content):
        raise UserError(f"{path} is not a VIA file; it looks like COCO's format, which needs no conversion.")
    if {"config", "metadata", "view"} <= set(content):
        raise UserError(f"{path} is a project of VIA 3, which is not supported: {hint}")
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, Mapping) or not all(
        isinstance(x, Mapping) and "filename" in x for x in entries.values()
    ):
        raise UserError(f"{path} is not a VIA file, since its entries are not images with a 'filename': {hint}")
    return entries


def _read_image(entry: Mapping[str, Any], path: str) -> ViaImage:
    file_name, size = str(entry["filename"]), entry.get("size")
    # VIA 1 numbers the regions in a dict; VIA 2 has a list.
    items = entry.get("regions") or []
    if not isinstance(items, Mapping | list):
        raise UserError(f"The 'regions' of image {file_name} in {path} are {items!r:.40}: save it with VIA again.")
    regions = []
    for index, item in enumerate(items.values() if isinstance(items, Mapping) else items):
        name = f"region {index} (counted from 0) of image {file_name} in {path}"
        shape = item.get("shape_attributes") if isinstance(item, Mapping) else None
        if not isinstance(shape, Mapping):
            raise UserError(f"There are no 'shape_attributes' in {name}: remove it, or outline it again.")
        attributes = item.get("region_attributes")
        regions.append(ViaRegion(name, shape, attributes if isinstance(attributes, Mapping) else {}))
    return ViaImage(file_name, size if isinstance(size, int) else -1, regions)


def _polygon(shape: Mapping[str, Any]) -> np.ndarray:
    x, y = shape["all_points_x"], shape["all_points_y"]
    if len(x) != len(y):
        raise ValueError(f"it has {len(x)} x and {len(y)} y")
    if len(x) < 3:
        raise ValueError(f"it has {len(x)} points, and needs 3")
    return np.array([x, y], dtype=np.float64).T


def _rectangle(shape: Mapping[str, Any]) -> np.ndarray:
    x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def _ellipse(shape: Mapping[str, Any], keys: Sequence[str] = ("cx", "cy", "rx", "ry")) -> np.ndarray:
    cx, cy, rx, ry = (float(shape[key]) for key in keys)
    # From the x axis to that of rx, clockwise, since y points down. Only late versions of VIA 2 rotate ellipses.
    theta = float(shape.get("theta", 0))
    t = np.arange(_ELLIPSE_CORNERS) * 2 * np.pi / _ELLIPSE_CORNERS
    along, across = rx * np.cos(t), ry * np.sin(t)
    x = cx + along * np.cos(theta) - across * np.sin(theta)
    y = cy + along * np.sin(theta) + across * np.cos(theta)
    return np.stack([x, y], axis=1)


_OUTLINES = {
    "polygon": _polygon,
    "rect": _rectangle,
    "circle": lambda shape: _ellipse(shape, ("cx", "cy", "r", "r")),
    "ellipse": _ellipse,
}
