"""The palette, seen with every kind of color vision."""

import numpy as np
import pytest

from detr_d2.visualization.style import PALETTE, palette_color

# Machado, Oliveira and Fernandes (2009), severity 1.0: linear RGB as protanopes, deuteranopes and tritanopes see it.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = [0.9505, 1, 1.089]


def to_lab(linear: np.ndarray) -> np.ndarray:
    xyz = linear.clip(0, 1) @ RGB_TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", VISION)
def test_colors_differ(vision):
    """Distances in CIELAB, of which 2.3 is just noticeable: of all colors, and of the first six."""
    colors = np.array(PALETTE)
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    lab = to_lab(linear @ np.transpose(VISION[vision]))
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.diag(np.full(len(lab), np.inf))
    assert distances.min() > 7
    assert distances[:6, :6].min() > 16


def test_colors_repeat():
    assert palette_color(1) == palette_color(1 + len(PALETTE)) != palette_color(7)
