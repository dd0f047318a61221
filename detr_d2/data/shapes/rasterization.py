"""Rasterization of shapes: the outlines of things and the textures of stuff as arrays of pixels."""

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

# Outlines are rasterized at this multiple of the resolution and averaged, which gives soft edges.
_OVERSAMPLING = 3


def rasterize_outline(
    name: str, size: tuple[int, int], center: tuple[float, float], diameter: float, angle: float
) -> tuple[np.ndarray, float]:
    """Compute the share of each pixel that a thing covers.

    Args:
        name: one of ``THING_CLASSES``.
        size: height and width of the image.
        center: x and y in pixels; may lie outside the image.
        diameter: of the circle around the outline, in pixels.
        angle: rotation of the outline, in radians.

    Returns:
        (H, W) float32 in [0, 1]; and the whole area in pixels, including what lies outside the image.
    """
    # Only a patch around the outline is rasterized.
    left, top = (math.floor(x - diameter / 2) - 1 for x in center)
    side = math.ceil(diameter) + 3
    canvas = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for corners, value in zip(_OUTLINES[name], (255, 0), strict=False):
        x, y = (corners * diameter / 2).T
        rotated = np.stack((x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)), axis=1)
        pen.polygon([tuple(x) for x in (rotated + center - (left, top)) * _OVERSAMPLING], fill=value)
    patch = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    coverage = np.zeros(size, dtype=np.float32)
    rows, columns = (_overlap(start, side, end) for start, end in zip((top, left), size, strict=True))
    coverage[rows[1], columns[1]] = patch[rows[0], columns[0]]
    return coverage, float(patch.sum())


def _overlap(start: int, length: int, end: int) -> tuple[slice, slice]:
    """Return where [start, start + length) and [0, end) overlap, counted from ``start`` and from 0."""
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


# Polygons on the unit disc, y downwards. The second, if any, is a hole.
_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_circle(1.0, 48),),
    "square": (_circle(1.0, 4, np.pi / 4),),
    "triangle": (_circle(1.0, 3),),
    "star": (_star(),),
    "ring": (_circle(1.0, 48), _circle(0.6, 48)),
    "cross": (_cross(),),
}


def sample_noise(rng: Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return (H, W) float32 smooth noise in [0, 1]: random values on ``cells`` x ``cells`` cells, interpolated."""
    height, width = size
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.clip(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def sample_texture(rng: Generator, size: tuple[int, int], name: str, contrast: float) -> np.ndarray:
    """Return an (H, W, 3) float32 texture of a class of stuff, in [0, 255], in two random colors.

    Args:
        rng: source of the random numbers.
        size: height and width.
        name: one of ``STUFF_CLASSES``.
        contrast: share of the difference between the two colors that the pattern uses, in (0, 1].
    """
    pattern = _PATTERNS[name](rng, size)[..., None]
    dark, light = rng.uniform(20, 140, 3), rng.uniform(90, 235, 3)
    return (dark + (light - dark) * (0.5 + contrast * (pattern - 0.5))).astype(np.float32)


def _cloud(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    octaves = [sample_noise(rng, size, cells) / 2**i for i, cells in enumerate((3, 6, 12, 24))]
    return sum(octaves) / 1.875


def _stripes(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Return waves along a random direction, bent a little."""
    y, x = np.indices(size, dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    distance = x * np.cos(angle) + y * np.sin(angle) + 8 * sample_noise(rng, size, 3)
    return 0.5 + 0.5 * np.sin(distance * rng.uniform(0.3, 0.9))


def _checks(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(size) // rng.integers(5, 14)
    return ((x + y) % 2 * 0.7 + 0.3 * sample_noise(rng, size, 4)).astype(np.float32)


def _grain(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.6 * rng.random(size, dtype=np.float32) + 0.4 * sample_noise(rng, size, 5)


_PATTERNS: dict[str, Callable[[Generator, tuple[int, int]], np.ndarray]] = {
    "cloud": _cloud,
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
}
