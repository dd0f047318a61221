"""Rows of captioned pictures of one size in a figure without margins."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

_DPI = 120
# Inches: the longer side of a picture, the least room for a caption, its height, what is between pictures.
_SIDE = 3.2
_CAPTION_WIDTH = 2.2
_CAPTION_HEIGHT = 0.27
_GAP = 0.08
_SHADOW = withStroke(linewidth=1.5, foreground="#00000080")


class Panel(NamedTuple):
    """A picture and what is drawn and said about it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB; of one size in all panels of a figure."""
    caption: str = ""
    note: str = ""
    """Smaller, at the caption's other end."""
    corner: str = ""
    """In the picture's lower right corner."""
    colour: tuple[float, float, float] | str | None = None
    """Of a square before the caption."""
    boxes: tuple = ()
    """Pairs of an XYXY box in pixels and its colour."""
    marks: tuple = ()
    """Triples of a point (x, y) in pixels, its text and its colour."""


def draw_panels(panels: list[Panel], columns: int) -> NDArray[np.uint8]:
    """One picture of all panels, row by row: (H', W', 3) RGB."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height, width = panels[0].image.shape[:2]
    scale = _SIDE / max(height, width)
    wide, high = max(width * scale, _CAPTION_WIDTH), height * scale
    total_width = columns * wide + (columns + 1) * _GAP
    total_height = rows * (high + _CAPTION_HEIGHT + _GAP) + _GAP
    figure = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left = _GAP + column * (wide + _GAP)
        bottom = total_height - (row + 1) * (high + _CAPTION_HEIGHT + _GAP)
        inches = (left, bottom, width * scale, high)
        totals = (total_width, total_height, total_width, total_height)
        _draw_panel(figure.add_axes([x / total for x, total in zip(inches, totals, strict=True)]), panel, wide)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_panel(axes: Axes, panel: Panel, width: float) -> None:
    height_px, width_px = panel.image.shape[:2]
    axes.set_axis_off()
    axes.imshow(panel.image, extent=(0, width_px, height_px, 0), aspect="auto", interpolation="antialiased")
    for (x0, y0, x1, y1), colour in panel.boxes:
        outline = {"fill": False, "clip_on": True}
        axes.add_patch(_rectangle(x0, y0, x1, y1, edgecolor="white", linewidth=2.2, alpha=0.6, **outline))
        axes.add_patch(_rectangle(x0, y0, x1, y1, edgecolor=colour, linewidth=1.3, **outline))
    for (x, y), text, colour in panel.marks:
        axes.plot(x, y, "o", markersize=9, markerfacecolor=colour, markeredgecolor="white", markeredgewidth=1.2)
        axes.text(x, y, text, color="white", fontsize=6, weight="bold", ha="center", va="center_baseline", clip_on=True)
    axes.set_xlim(0, width_px)
    axes.set_ylim(height_px, 0)
    white = {"color": "white", "fontsize": 7, "ha": "right", "va": "bottom", "path_effects": [_SHADOW]}
    axes.text(0.985, 0.015, panel.corner, transform=axes.transAxes, parse_math=False, **white)
    _draw_caption(axes, panel, width)


def _draw_caption(axes: Axes, panel: Panel, width: float) -> None:
    """In ``width`` inches over a picture that may be narrower; the caption shrinks to what the note leaves."""
    picture_width, picture_height = axes.bbox.width / _DPI, axes.bbox.height / _DPI
    text = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
    above = 1 + 0.05 / picture_height
    note = axes.text(width / picture_width, above, panel.note, color="#777777", fontsize=7, ha="right", **text)
    indent = 0.0
    # The colour may be too light to read: it goes into a square before the words.
    if panel.colour is not None:
        axes.text(0, above, "■", color=panel.colour, fontsize=9, ha="left", **text)
        indent = 0.15
    style = {"color": "#222222", "fontsize": 9, "weight": "bold", "ha": "left"}
    caption = axes.text(indent / picture_width, above, panel.caption, **style, **text)
    room = width - indent - note.get_window_extent().width / _DPI - _GAP
    needed = caption.get_window_extent().width / _DPI
    if needed > room:
        caption.set_fontsize(9 * max(room, 0.1) / needed)


def _rectangle(x0: float, y0: float, x1: float, y1: float, **style) -> Rectangle:
    return Rectangle((x0, y0), x1 - x0, y1 - y0, **style)
