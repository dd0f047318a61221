"""What the background of a scene is painted with: one texture for each class of stuff."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image


def smooth_noise(rng: Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """(H, W) float32 in [0, 1]: random values on a grid of ``cells`` a side, interpolated."""
    height, width = size
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.clip(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def paint(rng: Generator, size: tuple[int, int], name: str, contrast: float) -> np.ndarray:
    """(H, W, 3) float32 in [0, 255]: a texture in two random colours, ``contrast`` in (0, 1] apart."""
    pattern = _PATTERNS[name](rng, size)[..., None]
    dark, light = rng.uniform(20, 140, 3), rng.uniform(90, 235, 3)
    return (dark + (light - dark) * (0.5 + contrast * (pattern - 0.5))).astype(np.float32)


def _cloud(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    octaves = [smooth_noise(rng, size, cells) / 2**i for i, cells in enumerate((3, 6, 12, 24))]
    return sum(octaves) / 1.875


def _stripes(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_ramp(rng, size) * rng.uniform(0.3, 0.9))


def _checks(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(size) // rng.integers(5, 14)
    return ((x + y) % 2 * 0.7 + 0.3 * smooth_noise(rng, size, 4)).astype(np.float32)


def _grain(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.6 * rng.random(size, dtype=np.float32) + 0.4 * smooth_noise(rng, size, 5)


def _ramp(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Pixels along a random direction, bent a little."""
    y, x = np.indices(size, dtype=np.float32)
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle) + 8 * smooth_noise(rng, size, 3)


_PATTERNS: dict[str, Callable[[Generator, tuple[int, int]], np.ndarray]] = {
    "cloud": _cloud,
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
}
