"""Attention of a DETR as heat maps over the image, in a grid of captioned images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr_d2.modeling import AttentionRecord
from detr_d2.utils.errors import UserError
from detr_d2.visualization.detections import class_name
from detr_d2.visualization.style import Color, palette_color

_HEAT = colormaps["inferno"]
_COLUMNS = 3
_DPI = 120
# Inches: the longer side of an image, the minimum width and the height of a caption, the gap between images.
_SIDE = 3.2
_CAPTION_WIDTH = 2.2
_CAPTION_HEIGHT = 0.27
_GAP = 0.08
_SHADOW = withStroke(linewidth=1.5, foreground="#00000080")


class Panel(NamedTuple):
    """An image of the grid with what is drawn and written on it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB; of one size in all panels of a grid."""
    caption: str = ""
    note: str = ""
    """Smaller text at the caption's other end."""
    corner: str = ""
    """Text in the image's lower right corner."""
    color: Color | None = None
    """Of a square before the caption."""
    boxes: tuple = ()
    """Pairs of an XYXY box in pixels and its color."""
    marks: tuple = ()
    """Triples of a point (x, y) in pixels, its text and its color."""


def draw_query_attention(
    image_rgb: NDArray[np.uint8],
    instances: Instances,
    record: AttentionRecord,
    class_names: Sequence[str | None] | None = None,
    *,
    queries: Sequence[int] | None = None,
    top: int = 5,
    index: int = 0,
    layer: int = -1,
    per_head: bool = False,
) -> NDArray[np.uint8]:
    """Draw the image with the boxes of some object queries, then one heat map of cross attention per query.

    Args:
        image_rgb: (H, W, 3) the whole image, of any size.
        instances: its detections, with boxes in pixels of ``image_rgb`` and ``queries``, as the model returns them.
        record: of the forward pass that found them, see :func:`~detr_d2.modeling.record_attention`.
        class_names: by class; a class without a name is called "class 3".
        queries: to draw the attention of; by default those of the ``top`` best detections.
        index: the image's number in the batch.
        layer: of the decoder; negative numbers count from the last.
        per_head: one heat map per head instead of their mean.

    Returns:
        (H', W', 3) RGB.

    Raises:
        UserError: there is no such query or layer.
    """
    weights = record.cross_attention(index, layer)
    instances = instances.to("cpu")
    chosen = _best_queries(instances, top) if queries is None else list(queries)
    if wrong := [q for q in chosen if not 0 <= q < weights.shape[1]]:
        raise UserError(f"There is no query {wrong[0]}: the model has {weights.shape[1]}, numbered from 0.")
    rows = [(weights[:, q], _query_panel(image_rgb, instances, q, class_names)) for q in chosen]
    return _draw(image_rgb, rows, _layer_note(record.decoder, layer, "decoder"), record, index, per_head)


def draw_encoder_attention(
    image_rgb: NDArray[np.uint8],
    record: AttentionRecord,
    points: Sequence[tuple[float, float]] | None = None,
    *,
    index: int = 0,
    layer: int = -1,
    per_head: bool = False,
) -> NDArray[np.uint8]:
    """Draw the image with numbered points, then one heat map of the encoder's self attention per point.

    Args:
        image_rgb: (H, W, 3) the whole image, of any size.
        record: see :func:`~detr_d2.modeling.record_attention`; made with these points, or with every feature.
        points: x and y relative to the image; by default those that were recorded.
        index, layer, per_head: as for :func:`draw_query_attention`, of the encoder.

    Returns:
        (H', W', 3) RGB.

    Raises:
        UserError: there is no such layer, or no such point was recorded.
    """
    points = record.encoder_points if points is None else points
    if not points:
        raise UserError("No points to draw the encoder's attention from: name some, when recording or now.")
    height, width = image_rgb.shape[:2]
    rows = []
    for i, (x, y) in enumerate(points):
        color = palette_color(i)
        marks = (((x * width, y * height), str(i + 1), color),)
        weights = record.self_attention((float(x), float(y)), index, layer)
        rows.append((weights, Panel(image_rgb, f"from point {i + 1}", color=color, marks=marks)))
    return _draw(image_rgb, rows, _layer_note(record.encoder, layer, "encoder"), record, index, per_head)


def heat_map(weights: Tensor, record: AttentionRecord, size: tuple[int, int], index: int = 0) -> NDArray[np.float32]:
    """Resize (H, W) weights of features to ``size``, the height and width of the whole image, without padding.

    A feature covers a square of ``record.stride`` pixels; between the centers the weights are interpolated.
    """
    height, width = weights.shape
    valid_size = (x / record.stride for x in record.image_sizes[index])
    # Where a backbone floors the size of its features, the last ones cover a little more.
    rows, columns = (min(x, limit) for x, limit in zip(valid_size, (height, width), strict=True))
    image = Image.fromarray(weights.detach().float().cpu().numpy())
    resized = image.resize(size[::-1], Image.Resampling.BICUBIC, box=(0, 0, columns, rows))
    return np.asarray(resized).clip(0)


def overlay_heat(image_rgb: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (H, W, 3): the image in gray, under ``heat``, (H, W), relative to its own maximum."""
    relative = (heat / max(float(heat.max()), 1e-12))[..., None]
    gray = np.asarray(Image.fromarray(image_rgb).convert("L"), dtype=np.float32)[..., None]
    colors = _HEAT(relative[..., 0])[..., :3] * 255
    # The image stays visible under weak attention.
    opacity = 0.15 + 0.75 * relative**0.6
    return (gray * 0.75 * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def draw_panels(panels: list[Panel], columns: int) -> NDArray[np.uint8]:
    """Draw all panels row by row in one image: (H', W', 3) RGB."""
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
        inches = np.array([left, bottom, width * scale, high])
        axes = figure.add_axes(inches / (total_width, total_height, total_width, total_height))
        _draw_panel(axes, panel)
        _draw_caption(axes, panel, wide)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(
    image: NDArray[np.uint8],
    rows: list[tuple[Tensor, Panel]],
    note: str,
    record: AttentionRecord,
    index: int,
    per_head: bool,
) -> NDArray[np.uint8]:
    """Draw the image and one heat map per row of (heads, H, W) weights and panel; with ``per_head`` one per head."""

    def heat_panel(panel: Panel, weights: Tensor) -> Panel:
        heat = overlay_heat(image, heat_map(weights, record, image.shape[:2], index))
        return panel._replace(image=heat, corner=f"largest weight {float(weights.max()):.2g}")

    if per_head and rows:
        panels = []
        for weights, panel in rows:
            panels.append(panel._replace(corner=note))
            heads = [panel._replace(caption=f"head {i}", note="") for i in range(len(weights))]
            panels += map(heat_panel, heads, weights)
        return draw_panels(panels, len(panels) // len(rows))
    boxes = tuple(box for _, panel in rows for box in panel.boxes)
    marks = tuple(mark for _, panel in rows for mark in panel.marks)
    panels = [Panel(image, "image" if rows else "no detections", note, boxes=boxes, marks=marks)]
    panels += [heat_panel(panel, weights.mean(dim=0)) for weights, panel in rows]
    return draw_panels(panels, _COLUMNS)


def _query_panel(
    image: NDArray[np.uint8], instances: Instances, query: int, class_names: Sequence[str | None] | None
) -> Panel:
    """Describe the query's best detection, if it has one."""
    found = instances[instances.queries == query]
    if not len(found):
        return Panel(image, "no detection", f"query {query}")
    best = found[int(found.scores.argmax())]
    label = int(best.pred_classes)
    box = tuple(best.pred_boxes.tensor[0].tolist())
    color = palette_color(label)
    caption = f"{class_name(class_names, label)} {float(best.scores):.0%}"
    return Panel(image, caption, f"query {query}", color=color, boxes=((box, color),))


def _best_queries(instances: Instances, count: int) -> list[int]:
    order = instances.scores.argsort(descending=True, stable=True)
    # With focal loss a query may be detected under several classes.
    return list(dict.fromkeys(instances.queries[order].tolist()))[:count]


def _layer_note(layers: list[Tensor], layer: int, name: str) -> str:
    return f"{name} layer {layer % len(layers) + 1} of {len(layers)}"


def _draw_panel(axes: Axes, panel: Panel) -> None:
    height, width = panel.image.shape[:2]
    axes.set_axis_off()
    axes.imshow(panel.image, extent=(0, width, height, 0), aspect="auto", interpolation="antialiased")
    for (x0, y0, x1, y1), color in panel.boxes:
        for style in ({"edgecolor": "white", "linewidth": 2.2, "alpha": 0.6}, {"edgecolor": color, "linewidth": 1.3}):
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, clip_on=True, **style))
    for (x, y), text, color in panel.marks:
        axes.plot(x, y, "o", markersize=9, markerfacecolor=color, markeredgecolor="white", markeredgewidth=1.2)
        axes.text(x, y, text, color="white", fontsize=6, weight="bold", ha="center", va="center_baseline", clip_on=True)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    white = {"color": "white", "fontsize": 7, "ha": "right", "va": "bottom", "path_effects": [_SHADOW]}
    axes.text(0.985, 0.015, panel.corner, transform=axes.transAxes, parse_math=False, **white)


def _draw_caption(axes: Axes, panel: Panel, width: float) -> None:
    """Write into ``width`` inches over an image that may be narrower; the caption shrinks to what the note leaves."""
    image_width, image_height = axes.bbox.width / _DPI, axes.bbox.height / _DPI
    text = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
    above = 1 + 0.05 / image_height
    note = axes.text(width / image_width, above, panel.note, color="#777777", fontsize=7, ha="right", **text)
    indent = 0.0
    # The color may be too light for text: it fills a square before the caption.
    if panel.color is not None:
        axes.text(0, above, "■", color=panel.color, fontsize=9, ha="left", **text)
        indent = 0.15
    style = {"color": "#222222", "fontsize": 9, "weight": "bold", "ha": "left"}
    caption = axes.text(indent / image_width, above, panel.caption, **style, **text)
    available = width - indent - note.get_window_extent().width / _DPI - _GAP
    needed = caption.get_window_extent().width / _DPI
    if needed > available:
        caption.set_fontsize(9 * max(available, 0.1) / needed)
