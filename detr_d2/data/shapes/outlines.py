"""The forms of the things, drawn from their corners."""

import math

import numpy as np
from PIL import Image, ImageDraw

# Forms are drawn so many times larger and shrunk, which gives soft edges.
_OVERSAMPLING = 3


def draw(
    name: str, size: tuple[int, int], centre: tuple[float, float], diameter: float, angle: float
) -> tuple[np.ndarray, float]:
    """How much of each pixel a form covers.

    Args:
        name: one of ``THING_CLASSES``.
        size: height and width of the image.
        centre: x and y in pixels; may lie outside the image.
        diameter: of the circle around the form, in pixels.
        angle: that the form is turned by, in radians.

    Returns:
        (H, W) float32 in [0, 1]; and the form's whole area in pixels, with what lies outside the image.
    """
    # Only the surroundings of the form are drawn.
    left, top = (math.floor(x - diameter / 2) - 1 for x in centre)
    side = math.ceil(diameter) + 3
    canvas = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for corners, value in zip(_FORMS[name], (255, 0), strict=False):
        x, y = (corners * diameter / 2).T
        turned = np.stack((x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)), axis=1)
        pen.polygon([tuple(x) for x in (turned + centre - (left, top)) * _OVERSAMPLING], fill=value)
    patch = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    coverage = np.zeros(size, dtype=np.float32)
    rows, columns = (_overlap(start, side, end) for start, end in zip((top, left), size, strict=True))
    coverage[rows[1], columns[1]] = patch[rows[0], columns[0]]
    return coverage, float(patch.sum())


def _overlap(start: int, length: int, end: int) -> tuple[slice, slice]:
    """What a patch from ``start`` and an axis from 0 to ``end`` share, counted on the patch and on the axis."""
    first, last = max(start, 0), min(start + length, end)
    last = max(first, last)
    return slice(first - start, last - start), slice(first, last)


def _circle(radius: float, corners: int, first: float = 0.0) -> np.ndarray:
    angles = first + np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack((np.sin(angles), -np.cos(angles)), axis=1)


def _star() -> np.ndarray:
    return np.stack((_circle(1.0, 5), _circle(0.42, 5, np.pi / 5)), axis=1).reshape(-1, 2)


def _cross(arm: float = 0.3) -> np.ndarray:
    x = np.array([-arm, arm, arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm])
    return np.stack((x, np.roll(x, -3)), axis=1) * 0.92


# Polygons on the unit disc, y downwards. The second, where there is one, is a hole.
_FORMS: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_circle(1.0, 48),),
    "square": (_circle(1.0, 4, np.pi / 4),),
    "triangle": (_circle(1.0, 3),),
    "star": (_star(),),
    "ring": (_circle(1.0, 48), _circle(0.6, 48)),
    "cross": (_cross(),),
}
