"""Outlines as polygons: (N, 2) float64 arrays of x and y in pixels, the last point joined to the first."""

import numpy as np

# A polygon of so many corners, all on the ellipse, lacks 0.2 % of its area.
_CORNERS_OF_ELLIPSE = 64


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], dtype=np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> np.ndarray:
    """
    Args:
        cx, cy: the centre.
        rx, ry: the radii.
        theta: the angle, in radians, from the x axis to that of ``rx``; clockwise, since y points down.
    """
    t = np.arange(_CORNERS_OF_ELLIPSE) * 2 * np.pi / _CORNERS_OF_ELLIPSE
    along, across = rx * np.cos(t), ry * np.sin(t)
    x = cx + along * np.cos(theta) - across * np.sin(theta)
    y = cy + along * np.sin(theta) + across * np.cos(theta)
    return np.stack([x, y], axis=1)


def area(polygon: np.ndarray) -> float:
    """In square pixels, by the shoelace formula."""
    if len(polygon) == 0:
        return 0.0
    x, y = (polygon - polygon[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def bounding_box(polygon: np.ndarray) -> np.ndarray:
    """(4,) absolute XYWH of a polygon with at least one point."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return np.concatenate([low, high - low])


def clip(polygon: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The part of a polygon inside an image of the given height and width; no points if there is none.

    Sutherland and Hodgman, Reentrant polygon clipping, CACM 1974: one side of the image after the other. Parts that
    the image cuts a polygon into stay joined, along the border.
    """
    height, width = image_size
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        polygon = _clip_side(polygon, axis, limit, sign)
    return polygon


def _clip_side(polygon: np.ndarray, axis: int, limit: float, sign: int) -> np.ndarray:
    depth = sign * (polygon[:, axis] - limit)
    kept = []
    for i, point in enumerate(polygon):
        before, inside_before, inside = polygon[i - 1], depth[i - 1] >= 0, depth[i] >= 0
        if inside != inside_before:
            share = depth[i - 1] / (depth[i - 1] - depth[i])
            crossing = before + share * (point - before)
            crossing[axis] = limit
            kept.append(crossing)
        if inside:
            kept.append(point)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)
