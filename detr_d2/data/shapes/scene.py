"""One image of a dataset of shapes, with the segment that each of its pixels belongs to."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from detr_d2.data.shapes.outlines import draw
from detr_d2.data.shapes.spec import STUFF_CLASSES, THING_CLASSES, ShapesSpec
from detr_d2.data.shapes.textures import paint, smooth_noise

_SHARE_EMPTY = 0.05
_MOST_TRIES = 12
# Less than this is nothing that one could recognise.
_LEAST_PIXELS = 24


class Scene(NamedTuple):
    """A drawn image."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    segments: np.ndarray
    """(H, W) int32: stuff first, then things in the order in which they were painted; numbers without gaps."""
    stuff: list[int]
    """Indices in ``STUFF_CLASSES`` of the first segments."""
    things: list[int]
    """Indices in ``THING_CLASSES`` of the segments after them."""


def draw_scene(spec: ShapesSpec, index: int) -> Scene:
    """The image ``index`` of a dataset."""
    rng = np.random.default_rng((spec.seed, index))
    size = tuple(rng.integers(spec.sides[0], spec.sides[1] + 1, 2).tolist())
    canvas, segments, stuff = _draw_background(rng, spec, size)
    things = []
    wanted = 0 if rng.random() < _SHARE_EMPTY else rng.integers(1, spec.max_objects + 1)
    # The full number of pixels of each thing, to tell how much of it others have hidden.
    areas = []
    for _ in range(wanted * _MOST_TRIES):
        if len(things) == wanted:
            break
        thing = int(rng.integers(len(THING_CLASSES)))
        coverage, area = _draw_outline(rng, spec, size, thing)
        painted = np.where(coverage > 0.5, len(stuff) + len(things), segments)
        if not _all_visible(painted, len(stuff), [*areas, area], spec.least_visible):
            continue
        canvas = _paint_thing(rng, spec, canvas, coverage, thing)
        segments = painted
        things.append(thing)
        areas.append(area)
    return Scene(_photograph(rng, spec, canvas), segments.astype(np.int32), stuff, things)


def _draw_background(
    rng: Generator, spec: ShapesSpec, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One to three stuffs, one above the other, with wavy borders."""
    stuff = rng.choice(len(STUFF_CLASSES), rng.integers(1, 4), replace=False).tolist()
    level = np.indices(size)[0] / size[0] + 0.3 * (smooth_noise(rng, size, 3) - 0.5)
    borders = (np.arange(1, len(stuff)) + rng.uniform(-0.2, 0.2, len(stuff) - 1)) / len(stuff)
    segments = np.searchsorted(borders, level.ravel()).reshape(size)
    present, segments = np.unique(segments, return_inverse=True)
    segments = segments.reshape(size)
    stuff = [stuff[i] for i in present]
    textures = np.stack([paint(rng, size, STUFF_CLASSES[i], spec.texture_contrast) for i in stuff])
    return np.take_along_axis(textures, segments[None, ..., None], axis=0)[0], segments, stuff


def _draw_outline(rng: Generator, spec: ShapesSpec, size: tuple[int, int], thing: int) -> tuple[np.ndarray, float]:
    """Where a new thing lies, and how many pixels it would have if the image didn't end."""
    diameter = min(size) * rng.uniform(*spec.diameters)
    centre = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
    angle = rng.uniform(-spec.largest_turn, spec.largest_turn)
    return draw(THING_CLASSES[thing], size, centre, diameter, angle)


def _all_visible(segments: np.ndarray, first: int, areas: list[float], share: float) -> bool:
    visible = np.bincount(segments.ravel(), minlength=first + len(areas))[first:]
    # Stuff that vanishes would leave a gap in the numbers.
    stuff_left = np.bincount(segments.ravel())[:first].all()
    return bool(stuff_left and (visible >= np.maximum(np.array(areas) * share, _LEAST_PIXELS)).all())


def _paint_thing(rng: Generator, spec: ShapesSpec, canvas: np.ndarray, coverage: np.ndarray, thing: int) -> np.ndarray:
    behind = canvas[coverage > 0.5].mean(axis=0)
    colours = _colours(rng, spec, thing)
    distances = np.linalg.norm(colours - behind, axis=1)
    colour = colours[np.argmax(distances >= spec.least_contrast)]
    shading = 0.75 + 0.5 * smooth_noise(rng, coverage.shape, 4)[..., None]
    return canvas + coverage[..., None] * (colour * shading - canvas)


def _colours(rng: Generator, spec: ShapesSpec, thing: int) -> np.ndarray:
    """(32, 3) RGB in [0, 255], to choose from: around the hue of the class, as bananas are yellow, mostly."""
    hue = thing / len(THING_CLASSES) + rng.uniform(-0.5, 0.5, 32) * spec.hue_spread
    saturation, value = rng.uniform(0.5, 1, 32), rng.uniform(0.3, 1, 32)
    # From HSV: each channel falls off with the distance of the hue from its own.
    distance = np.abs((hue[:, None] - np.array([0, 1 / 3, 2 / 3]) + 0.5) % 1 - 0.5)
    return 255 * value[:, None] * (1 - saturation[:, None] * np.clip(6 * distance - 1, 0, 1))


def _photograph(rng: Generator, spec: ShapesSpec, canvas: np.ndarray) -> np.ndarray:
    """Light that falls from a side, a lens that is not quite sharp, a sensor that is not quite calm."""
    light = 0.7 + 0.6 * smooth_noise(rng, canvas.shape[:2], 1)[..., None]
    image = Image.fromarray(np.clip(canvas * light, 0, 255).astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8))), dtype=np.float32)
    image = image + rng.normal(0, spec.noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
