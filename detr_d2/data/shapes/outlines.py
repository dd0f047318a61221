"""The forms of the things, drawn from their corners."""

import numpy as np
from PIL import Image, ImageDraw

# Forms are drawn so many times larger and shrunk, which gives soft edges.
_OVERSAMPLING = 3


def draw(name: str, size: tuple[int, int], centre: tuple[float, float], diameter: float, angle: float) -> np.ndarray:
    """How much of each pixel a form covers.

    Args:
        name: one of ``THING_CLASSES``.
        size: height and width of the image.
        centre: x and y in pixels; may lie outside the image.
        diameter: of the circle around the form, in pixels.
        angle: that the form is turned by, in radians.

    Returns:
        (H, W) float32 in [0, 1].
    """
    height, width = size
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for corners, value in zip(_FORMS[name], (255, 0), strict=False):
        x, y = (corners * diameter / 2).T
        turned = np.stack((x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)), axis=1)
        pen.polygon([tuple(point) for point in (turned + centre) * _OVERSAMPLING], fill=value)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


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
