"""Segments drawn over an image."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from torch import Tensor

from detr_d2.visualization.instances import class_colour, class_name

# Of a class's colour, for one thing after the other; Detectron2's are drawn at random.
_SHADES = (1.0, 0.7, 1.25, 0.55, 0.85, 1.1)


def draw_panoptic(
    image_rgb: NDArray[np.uint8],
    ids: Tensor,
    segments: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw a ``panoptic_seg`` over a copy of an image; void stays as it is.

    A class of stuff has the same colour in every image, a class of things shades of it.

    Args:
        image_rgb: (H, W, 3).
        ids: (H, W) segment ids.
        segments: dicts with "id", "isthing", "category_id" (a row of the class head) and perhaps "score".
        class_names: by row; "class 3" where there is none.
        scale: of the picture, for images too small for labels.

    Returns:
        (H * scale, W * scale, 3) RGB.
    """
    rows = 1 + max((x["category_id"] for x in segments), default=0)
    # What stands between dollars is a formula to matplotlib.
    names = [class_name(class_names, row).replace("$", r"\$") for row in range(rows)]
    colours = [[255 * x for x in class_colour(row)] for row in range(rows)]
    metadata = Metadata(thing_classes=names, stuff_classes=names, thing_colors=colours, stuff_colors=colours)
    # The Visualizer counts areas into what it is given.
    segments = [dict(x) for x in segments]
    return _Visualizer(image_rgb, metadata, scale=scale).draw_panoptic_seg(ids.cpu(), segments, alpha=0.5).get_image()


class _Visualizer(Visualizer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._shades = itertools.cycle(_SHADES)

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        shade = next(self._shades)
        return tuple(min(1.0, shade * x + 0.1 * (shade > 1)) for x in color)
