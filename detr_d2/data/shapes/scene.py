"""Scenes of shapes: their parameters, and one image with the segment that each of its pixels belongs to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from detr_d2.utils.errors import UserError

THING_CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
STUFF_CLASSES = ("cloud", "stripes", "checks", "grain")

_EMPTY_SHARE = 0.05
_MAX_TRIES_PER_THING = 12
# Fewer pixels can't be recognized.
_MIN_PIXELS = 24
# Outlines are rasterized at this multiple of the resolution and averaged, which gives soft edges.
_OVERSAMPLING = 3


@dataclass(frozen=True)
class ShapesSpec:
    """Parameters that determine a dataset: equal ones give equal files."""

    num_images: int
    seed: int = 0  # Datasets of different seeds share no image.
    sides: tuple[int, int] = (128, 192)  # The shortest and the longest side that an image may have, in pixels.
    # In [0, 1]. The higher, the more the objects vary in size, rotation and color, hide each other and resemble the
    # background; and the stronger are textures and noise.
    difficulty: float = 0.15
    max_objects: int = 10  # The largest number per image; the smallest is one, and one image in twenty has none.

    def __post_init__(self) -> None:
        low, high = self.sides
        problems = {
            f"num_images is {self.num_images}: set 1 or more": self.num_images < 1,
            f"seed is {self.seed}: set 0 or more": self.seed < 0,
            f"sides are {self.sides}: set two lengths, 32 or more, the shortest first": not 32 <= low <= high,
            f"difficulty is {self.difficulty}: set 0 to 1": not 0 <= self.difficulty <= 1,
            f"max_objects is {self.max_objects}: set 1 or more": self.max_objects < 1,
        }
        for problem, is_present in problems.items():
            if is_present:
                raise UserError(f"ShapesSpec: {problem}.")

    @property
    def min_visible(self) -> float:
        """Smallest share of an object that neither other objects nor the border hide."""
        return 0.8 - 0.5 * self.difficulty

    @property
    def min_contrast(self) -> float:
        """Smallest distance of an object's color from the mean color behind it, in [0, 255 √3]."""
        return 180 - 100 * self.difficulty

    @property
    def texture_contrast(self) -> float:
        """Contrast of the background's patterns, in (0, 1]."""
        return 0.25 + 0.75 * self.difficulty


class Scene(NamedTuple):
    """Image of shapes with its segments."""

    image: np.ndarray  # (H, W, 3) uint8, RGB.
    segments: np.ndarray  # (H, W) int32: stuff first, then things from back to front; numbers without gaps.
    stuff: list[int]  # Indices in ``STUFF_CLASSES`` of the first segments.
    things: list[int]  # Indices in ``THING_CLASSES`` of the segments after them.


def sample_scene(spec: ShapesSpec, index: int) -> Scene:
    """Return the image ``index`` of a dataset, which depends on ``spec.seed`` and ``index`` alone."""
    rng = np.random.default_rng((spec.seed, index))
    size = tuple(rng.integers(spec.sides[0], spec.sides[1] + 1, 2).tolist())
    canvas, segments, stuff = _sample_background(rng, size, spec.texture_contrast)
    things = []
    count = 0 if rng.random() < _EMPTY_SHARE else rng.integers(1, spec.max_objects + 1)
    # The whole area of each thing, to compute how much of it others or the border hide.
    areas = []
    for _ in range(count * _MAX_TRIES_PER_THING):
        if len(things) == count:
            break
        thing = int(rng.integers(len(THING_CLASSES)))
        coverage, area = _sample_outline(rng, size, thing, spec.difficulty)
        candidate = np.where(coverage > 0.5, len(stuff) + len(things), segments)
        if not _all_visible(candidate, len(stuff), [*areas, area], spec.min_visible):
            continue
        canvas = _paint_thing(rng, spec, canvas, coverage, thing)
        segments = candidate
        things.append(thing)
        areas.append(area)
    image = _add_camera_effects(rng, canvas, noise=1 + 10 * spec.difficulty)
    return Scene(image, segments.astype(np.int32), stuff, things)


def _sample_background(
    rng: Generator, size: tuple[int, int], contrast: float
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return one to three stuff regions, one above the other, with wavy borders."""
    stuff = rng.choice(len(STUFF_CLASSES), rng.integers(1, 4), replace=False).tolist()
    level = np.indices(size)[0] / size[0] + 0.3 * (_sample_noise(rng, size, 3) - 0.5)
    borders = (np.arange(1, len(stuff)) + rng.uniform(-0.2, 0.2, len(stuff) - 1)) / len(stuff)
    present, segments = np.unique(np.searchsorted(borders, level.ravel()), return_inverse=True)
    segments = segments.reshape(size)
    stuff = [stuff[i] for i in present]
    textures = np.stack([_sample_texture(rng, size, STUFF_CLASSES[i], contrast) for i in stuff])
    return np.take_along_axis(textures, segments[None, ..., None], axis=0)[0], segments, stuff


def _sample_outline(rng: Generator, size: tuple[int, int], thing: int, difficulty: float) -> tuple[np.ndarray, float]:
    diameter = min(size) * rng.uniform(0.22 - 0.14 * difficulty, 0.45 + 0.2 * difficulty)
    center = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
    max_angle = math.radians(4 + 20 * difficulty)
    return rasterize_outline(THING_CLASSES[thing], size, center, diameter, rng.uniform(-max_angle, max_angle))


def rasterize_outline(
    name: str, size: tuple[int, int], center: tuple[float, float], diameter: float, angle: float
) -> tuple[np.ndarray, float]:
    """Compute the share of each pixel that a thing covers.

    Args:
        name: one of ``THING_CLASSES``.
        size: height and width of the image.
        center: x and y in pixels; may lie outside the image.
        diameter: diameter of the circle around the outline, in pixels.
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
    patch = canvas.resize((side, side), Image.Resampling.BOX)
    coverage = Image.new("L", size[::-1])
    coverage.paste(patch, (left, top))
    coverage, patch = (np.asarray(x, dtype=np.float32) / 255 for x in (coverage, patch))
    return coverage, float(patch.sum())


def _circle(radius: float, corners: int, first: float = 0.0) -> np.ndarray:
    angles = first + np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack((np.sin(angles), -np.cos(angles)), axis=1)


def _cross(arm: float = 0.3) -> np.ndarray:
    x = np.array([-arm, arm, arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm])
    return np.stack((x, np.roll(x, -3)), axis=1) * 0.92


# Polygons on the unit disc, y downwards. The second, if any, is a hole.
_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_circle(1.0, 48),),
    "square": (_circle(1.0, 4, np.pi / 4),),
    "triangle": (_circle(1.0, 3),),
    "star": (np.stack((_circle(1.0, 5), _circle(0.42, 5, np.pi / 5)), axis=1).reshape(-1, 2),),
    "ring": (_circle(1.0, 48), _circle(0.6, 48)),
    "cross": (_cross(),),
}


def _all_visible(segments: np.ndarray, num_stuff: int, areas: list[float], min_share: float) -> bool:
    visible = np.bincount(segments.ravel(), minlength=num_stuff + len(areas))
    min_pixels = np.maximum(np.array(areas) * min_share, _MIN_PIXELS)
    # Stuff without a pixel would leave a gap in the numbers.
    return bool(visible[:num_stuff].all() and (visible[num_stuff:] >= min_pixels).all())


def _paint_thing(rng: Generator, spec: ShapesSpec, canvas: np.ndarray, coverage: np.ndarray, thing: int) -> np.ndarray:
    behind = canvas[coverage > 0.5].mean(axis=0)
    colors = _sample_colors(rng, thing, hue_spread=min(1, 0.1 + spec.difficulty))
    distances = np.linalg.norm(colors - behind, axis=1)
    color = colors[np.argmax(distances >= spec.min_contrast)]
    shading = 0.75 + 0.5 * _sample_noise(rng, coverage.shape, 4)[..., None]
    return canvas + coverage[..., None] * (color * shading - canvas)


def _sample_colors(rng: Generator, thing: int, hue_spread: float) -> np.ndarray:
    """Return (32, 3) RGB candidates in [0, 255] around the hue that is typical of the class."""
    hue = thing / len(THING_CLASSES) + rng.uniform(-0.5, 0.5, 32) * hue_spread
    saturation, value = rng.uniform(0.5, 1, 32), rng.uniform(0.3, 1, 32)
    # Conversion from HSV: each channel decreases with the distance of the hue from the channel's own.
    distance = np.abs((hue[:, None] - np.array([0, 1 / 3, 2 / 3]) + 0.5) % 1 - 0.5)
    return 255 * value[:, None] * (1 - saturation[:, None] * np.clip(6 * distance - 1, 0, 1))


def _add_camera_effects(rng: Generator, canvas: np.ndarray, noise: float) -> np.ndarray:
    """Add uneven illumination, blur, and noise of this standard deviation in gray levels."""
    light = 0.7 + 0.6 * _sample_noise(rng, canvas.shape[:2], 1)[..., None]
    image = Image.fromarray(np.clip(canvas * light, 0, 255).astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8))), dtype=np.float32)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def _sample_noise(rng: Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return (H, W) float32 smooth noise in [0, 1]: random values on ``cells`` x ``cells`` cells, interpolated."""
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.clip(np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC)), 0, 1)


def _sample_texture(rng: Generator, size: tuple[int, int], name: str, contrast: float) -> np.ndarray:
    """Return an (H, W, 3) float32 texture in [0, 255] in two random colors, of whose difference it uses a share."""
    pattern = _PATTERNS[name](rng, size)[..., None]
    dark, light = rng.uniform(20, 140, 3), rng.uniform(90, 235, 3)
    return (dark + (light - dark) * (0.5 + contrast * (pattern - 0.5))).astype(np.float32)


def _cloud(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    octaves = [_sample_noise(rng, size, cells) / 2**i for i, cells in enumerate((3, 6, 12, 24))]
    return sum(octaves) / 1.875


def _stripes(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Return waves along a random direction, bent a little."""
    y, x = np.indices(size, dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    distance = x * np.cos(angle) + y * np.sin(angle) + 8 * _sample_noise(rng, size, 3)
    return 0.5 + 0.5 * np.sin(distance * rng.uniform(0.3, 0.9))


def _checks(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(size) // rng.integers(5, 14)
    return ((x + y) % 2 * 0.7 + 0.3 * _sample_noise(rng, size, 4)).astype(np.float32)


def _grain(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.6 * rng.random(size, dtype=np.float32) + 0.4 * _sample_noise(rng, size, 5)


_PATTERNS: dict[str, Callable[[Generator, tuple[int, int]], np.ndarray]] = {
    "cloud": _cloud,
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
}
