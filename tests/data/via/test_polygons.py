"""Outlines against arithmetic by hand, and clipping against OpenCV's rasterisation."""

import cv2
import numpy as np
import pytest

from detr_d2.data.via.polygons import area, bounding_box, clip, ellipse, rectangle


def test_rectangle():
    outline = rectangle(2, 3, 10, 5)
    assert area(outline) == 50
    assert bounding_box(outline).tolist() == [2, 3, 10, 5]


def test_circle_touches_its_box():
    outline = ellipse(50, 60, 20, 20)
    np.testing.assert_allclose(bounding_box(outline), [30, 40, 40, 40])
    assert area(outline) == pytest.approx(np.pi * 400, rel=2e-3)
    np.testing.assert_allclose(np.hypot(*(outline - (50, 60)).T), 20)


def test_a_turned_ellipse():
    """Turned by 90 degrees the radii change places; by 30, the long axis points right and down."""
    np.testing.assert_allclose(bounding_box(ellipse(50, 60, 20, 10, np.pi / 2)), [40, 40, 20, 40])
    outline = ellipse(0, 0, 20, 10, np.pi / 6)
    np.testing.assert_allclose(outline[0], [20 * np.sqrt(3) / 2, 10])
    # Half the width is sqrt(20² cos² + 10² sin²).
    assert bounding_box(outline)[2] == pytest.approx(2 * np.sqrt(400 * 0.75 + 100 * 0.25), rel=2e-3)


def test_clipping_a_corner_by_hand():
    """A diamond around the corner of the image: a triangle is left."""
    diamond = np.array([(0, -10), (10, 0), (0, 10), (-10, 0)], dtype=float)
    inside = clip(diamond, (40, 40))
    assert {tuple(p) for p in inside.tolist()} == {(10, 0), (0, 10), (0, 0)}
    assert area(inside) == 50


def test_clipping_keeps_what_is_inside():
    outline = ellipse(20, 20, 10, 5)
    np.testing.assert_array_equal(clip(outline, (40, 40)), outline)


def test_nothing_inside():
    outside = clip(rectangle(50, 5, 10, 10), (40, 40))
    assert outside.shape == (0, 2)
    assert area(outside) == 0


@pytest.mark.parametrize("seed", range(20))
def test_clipping_against_rasterisation(seed):
    """A star of random rays across the image's borders: the same pixels are covered as when a larger canvas is cut."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    star = random.uniform(0, 200, 2) + random.uniform(20, 150, 9)[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    inside = clip(star, (200, 200))
    assert (inside >= 0).all()
    assert (inside <= 200).all()

    canvas = np.zeros((1000, 1000), np.uint8)
    cv2.fillPoly(canvas, [np.round(star + 400).astype(np.int32)], 1)
    expected = canvas[400:600, 400:600]
    assert area(inside) == pytest.approx(expected.sum(), abs=0.02 * 200 * 200)
    if len(inside):
        ys, xs = np.nonzero(expected)
        x, y, width, height = bounding_box(inside)
        np.testing.assert_allclose(
            [x, y, x + width - 1, y + height - 1], [xs.min(), ys.min(), xs.max(), ys.max()], atol=2
        )
