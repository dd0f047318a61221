"""Scenes of shapes: their parameters, and one image with the segment that each of its pixels belongs to."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from detr_d2.data.shapes.rasterization import rasterize_outline, sample_noise, sample_texture
from detr_d2.utils.errors import UserError

THING_CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
STUFF_CLASSES = ("cloud", "stripes", "checks", "grain")

_EMPTY_SHARE = 0.05
_MAX_TRIES_PER_THING = 12
# Fewer pixels can't be recognized.
_MIN_PIXELS = 24


@dataclass(frozen=True)
class ShapesSpec:
    """Parameters that determine a dataset: equal ones give equal files.

    Attributes:
        num_images: the number of images.
        seed: datasets of different seeds share no image.
        sides: the shortest and the longest side that an image may have, in pixels.
        difficulty: in [0, 1]. The higher, the more the objects vary in size, rotation and color, hide each other and
            resemble what is behind them; and the bolder the textures, the stronger the noise.
        max_objects: the largest number of objects per image; the smallest is one, and one image in twenty has none.
    """

    num_images: int
    seed: int = 0
    sides: tuple[int, int] = (128, 192)
    difficulty: float = 0.15
    max_objects: int = 10

    def __post_init__(self) -> None:
        low, high = self.sides
        problems = {
            f"num_images is {self.num_images}: set 1 or more": self.num_images < 1,
            f"seed is {self.seed}: set 0 or more": self.seed < 0,
            f"sides are {self.sides}: set two lengths, 32 or more, the shortest first": not 32 <= low <= high,
            f"difficulty is {self.difficulty}: set 0 to 1": not 0 <= self.difficulty <= 1,
            f"max_objects is {self.max_objects}: set 1 or more": self.max_objects < 1,
        }
        for problem, found in problems.items():
            if found:
                raise UserError(f"ShapesSpec: {problem}.")

    @property
    def diameters(self) -> tuple[float, float]:
        """Smallest and largest diameter of an object, relative to the image's shorter side."""
        return 0.22 - 0.14 * self.difficulty, 0.45 + 0.2 * self.difficulty

    @property
    def max_angle(self) -> float:
        """Largest rotation of an object to either side, in radians."""
        return math.radians(4 + 20 * self.difficulty)

    @property
    def min_visible(self) -> float:
        """Smallest share of an object that neither other objects nor the border hide."""
        return 0.8 - 0.5 * self.difficulty

    @property
    def hue_spread(self) -> float:
        """Range of hues of one class, as a share of all hues."""
        return min(1, 0.1 + self.difficulty)

    @property
    def min_contrast(self) -> float:
        """Smallest distance of an object's color from the mean color behind it, in [0, 255 √3]."""
        return 180 - 100 * self.difficulty

    @property
    def texture_contrast(self) -> float:
        """Contrast of the background's patterns, in (0, 1]."""
        return 0.25 + 0.75 * self.difficulty

    @property
    def noise(self) -> float:
        """Standard deviation of the sensor's noise, in gray levels."""
        return 1 + 10 * self.difficulty


class Scene(NamedTuple):
    """Image of shapes with its segments."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    segments: np.ndarray
    """(H, W) int32: stuff first, then things from back to front; numbers without gaps."""
    stuff: list[int]
    """Indices in ``STUFF_CLASSES`` of the first segments."""
    things: list[int]
    """Indices in ``THING_CLASSES`` of the segments after them."""


def sample_scene(spec: ShapesSpec, index: int) -> Scene:
    """Return the image ``index`` of a dataset, which depends on ``spec.seed`` and ``index`` alone."""
    rng = np.random.default_rng((spec.seed, index))
    size = tuple(rng.integers(spec.sides[0], spec.sides[1] + 1, 2).tolist())
    canvas, segments, stuff = _sample_background(rng, spec, size)
    things = []
    count = 0 if rng.random() < _EMPTY_SHARE else rng.integers(1, spec.max_objects + 1)
    # The whole area of each thing, to compute how much of it others hide.
    areas = []
    for _ in range(count * _MAX_TRIES_PER_THING):
        if len(things) == count:
            break
        thing = int(rng.integers(len(THING_CLASSES)))
        coverage, area = _sample_outline(rng, spec, size, thing)
        candidate = np.where(coverage > 0.5, len(stuff) + len(things), segments)
        if not _all_visible(candidate, len(stuff), [*areas, area], spec.min_visible):
            continue
        canvas = _paint_thing(rng, spec, canvas, coverage, thing)
        segments = candidate
        things.append(thing)
        areas.append(area)
    return Scene(_photograph(rng, spec, canvas), segments.astype(np.int32), stuff, things)


def _sample_background(
    rng: Generator, spec: ShapesSpec, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return one to three stuff regions, one above the other, with wavy borders."""
    stuff = rng.choice(len(STUFF_CLASSES), rng.integers(1, 4), replace=False).tolist()
    level = np.indices(size)[0] / size[0] + 0.3 * (sample_noise(rng, size, 3) - 0.5)
    borders = (np.arange(1, len(stuff)) + rng.uniform(-0.2, 0.2, len(stuff) - 1)) / len(stuff)
    present, segments = np.unique(np.searchsorted(borders, level.ravel()), return_inverse=True)
    segments = segments.reshape(size)
    stuff = [stuff[i] for i in present]
    textures = np.stack([sample_texture(rng, size, STUFF_CLASSES[i], spec.texture_contrast) for i in stuff])
    return np.take_along_axis(textures, segments[None, ..., None], axis=0)[0], segments, stuff


def _sample_outline(rng: Generator, spec: ShapesSpec, size: tuple[int, int], thing: int) -> tuple[np.ndarray, float]:
    """Return the coverage of a new thing, and its area if the image did not end."""
    diameter = min(size) * rng.uniform(*spec.diameters)
    center = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
    angle = rng.uniform(-spec.max_angle, spec.max_angle)
    return rasterize_outline(THING_CLASSES[thing], size, center, diameter, angle)


def _all_visible(segments: np.ndarray, num_stuff: int, areas: list[float], min_share: float) -> bool:
    visible = np.bincount(segments.ravel(), minlength=num_stuff + len(areas))
    min_pixels = np.maximum(np.array(areas) * min_share, _MIN_PIXELS)
    # Stuff without a pixel would leave a gap in the numbers.
    return bool(visible[:num_stuff].all() and (visible[num_stuff:] >= min_pixels).all())


def _paint_thing(rng: Generator, spec: ShapesSpec, canvas: np.ndarray, coverage: np.ndarray, thing: int) -> np.ndarray:
    behind = canvas[coverage > 0.5].mean(axis=0)
    colors = _sample_colors(rng, spec, thing)
    distances = np.linalg.norm(colors - behind, axis=1)
    color = colors[np.argmax(distances >= spec.min_contrast)]
    shading = 0.75 + 0.5 * sample_noise(rng, coverage.shape, 4)[..., None]
    return canvas + coverage[..., None] * (color * shading - canvas)


def _sample_colors(rng: Generator, spec: ShapesSpec, thing: int) -> np.ndarray:
    """Return (32, 3) RGB candidates in [0, 255] around the hue that is typical of the class."""
    hue = thing / len(THING_CLASSES) + rng.uniform(-0.5, 0.5, 32) * spec.hue_spread
    saturation, value = rng.uniform(0.5, 1, 32), rng.uniform(0.3, 1, 32)
    # From HSV: each channel decreases with the distance of the hue from the channel's own.
    distance = np.abs((hue[:, None] - np.array([0, 1 / 3, 2 / 3]) + 0.5) % 1 - 0.5)
    return 255 * value[:, None] * (1 - saturation[:, None] * np.clip(6 * distance - 1, 0, 1))


def _photograph(rng: Generator, spec: ShapesSpec, canvas: np.ndarray) -> np.ndarray:
    """Add uneven light, the blur of a lens and the noise of a sensor."""
    light = 0.7 + 0.6 * sample_noise(rng, canvas.shape[:2], 1)[..., None]
    image = Image.fromarray(np.clip(canvas * light, 0, 255).astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8))), dtype=np.float32)
    image = image + rng.normal(0, spec.noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
