"""Outlines of shapes as pixels."""

import numpy as np
import pytest

from detr_d2.data.shapes.rasterization import rasterize_outline


def test_outlines_have_the_area_of_geometry():
    r = 30.0
    expected = {
        "disc": np.pi * r**2,
        "square": 2 * r**2,
        "triangle": 3 * 3**0.5 / 4 * r**2,
        "ring": np.pi * r**2 * (1 - 0.6**2),
        "cross": (0.92 * r) ** 2 * (4 - 4 * (1 - 0.3) ** 2),
        "star": 5 * 0.42 * r**2 * np.sin(np.pi / 5),
    }
    for name, area in expected.items():
        coverage, whole = rasterize_outline(name, (80, 90), (45.0, 40.0), 2 * r, 0.4)
        assert coverage.sum() == pytest.approx(area, rel=0.02), name
        assert whole == pytest.approx(coverage.sum()), name


def test_outline_is_at_the_requested_center():
    y, x = np.nonzero(rasterize_outline("disc", (80, 90), (30.0, 50.0), 20.0, 0.0)[0] > 0.5)
    assert (x.min(), x.max() + 1, y.min(), y.max() + 1) == (20, 40, 40, 60)


def test_outline_at_the_border_is_cut_off():
    for center in ((0.0, 40.0), (90.0, 40.0), (45.0, 0.0), (45.0, 80.0)):
        coverage, whole = rasterize_outline("disc", (80, 90), center, 30.0, 0.0)
        assert coverage.sum() == pytest.approx(whole / 2, rel=0.03)
    coverage, whole = rasterize_outline("disc", (80, 90), (-40.0, 40.0), 30.0, 0.0)
    assert coverage.sum() == 0
    assert whole == pytest.approx(np.pi * 15**2, rel=0.03)
