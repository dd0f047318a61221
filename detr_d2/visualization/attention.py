"""Attention of a DETR as heat maps over the image, in a grid of captioned images."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr_d2.modeling import AttentionRecord
from detr_d2.utils.errors import UserError
from detr_d2.visualization.detections import class_name
from detr_d2.visualization.style import Color, palette_color

_HEAT = colormaps["inferno"]
_COLUMNS = 3
# In pixels: the longer side of an image, the minimum width and the height of a caption, the gap between images.
_SIDE, _CAPTION_WIDTH, _CAPTION_HEIGHT, _GAP = 384, 264, 32, 10


class Panel(NamedTuple):
    """An image of the grid, with its captions and the shapes drawn on it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB; of the same size in all panels of a grid.
    caption: str = ""
    note: str = ""  # Smaller text at the caption's other end.
    corner: str = ""  # Text in the image's lower right corner.
    color: Color | None = None  # Color of a square before the caption.
    boxes: tuple = ()  # Pairs of an XYXY box in pixels and its color.
    marks: tuple = ()  # Triples of a point (x, y) in pixels, its text and its color.


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

    Return (H', W', 3) RGB. If there is no such query or layer, raise a UserError.

    Args:
        image_rgb: (H, W, 3) whole image, of any size.
        instances: its detections as the model returns them, with boxes in pixels of ``image_rgb``, and ``queries``.
        record: record of the forward pass that gave them, see :func:`~detr_d2.modeling.record_attention`.
        class_names: names by class; a class without a name is called "class 3".
        queries: numbers of queries; by default those of the ``top`` best detections.
        index: the image's number in the batch.
        layer: number of the decoder layer; negative numbers count from the last.
        per_head: True for one heat map per head instead of their mean.
    """
    weights = record.cross_attention(index, layer)
    instances = instances.to("cpu")
    if queries is None:
        best_first = instances.queries[instances.scores.argsort(descending=True, stable=True)]
        # With focal loss a query may be detected under several classes.
        queries = list(dict.fromkeys(best_first.tolist()))[:top]
    if unknown := [q for q in queries if not 0 <= q < weights.shape[1]]:
        raise UserError(f"There is no query {unknown[0]}: the model has {weights.shape[1]}, numbered from 0.")
    rows = [(weights[:, q], _query_panel(image_rgb, instances, q, class_names)) for q in queries]
    note = f"decoder layer {layer % len(record.decoder) + 1} of {len(record.decoder)}"
    return _draw(image_rgb, rows, note, record, index, per_head)


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

    Return (H', W', 3) RGB. If there is no such layer, or no such point was recorded, raise a UserError.

    Args:
        image_rgb: (H, W, 3) whole image, of any size.
        record: record with these points, or with every feature; see :func:`~detr_d2.modeling.record_attention`.
        points: x and y relative to the image; by default the recorded points.
        index, layer, per_head: as in :func:`draw_query_attention`, for the encoder.
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
    note = f"encoder layer {layer % len(record.encoder) + 1} of {len(record.encoder)}"
    return _draw(image_rgb, rows, note, record, index, per_head)


def heat_map(weights: Tensor, record: AttentionRecord, size: tuple[int, int], index: int = 0) -> NDArray[np.float32]:
    """Resize (H, W) weights of features to ``size``, height and width of the whole image without padding.

    A feature covers a square of ``record.stride`` pixels; between the centers the weights are interpolated.
    """
    # Where a backbone floors the size of its features, the last ones cover a little more.
    rows, columns = np.minimum(np.divide(record.image_sizes[index], record.stride), weights.shape)
    image = Image.fromarray(weights.detach().float().cpu().numpy())
    resized = image.resize(size[::-1], Image.Resampling.BICUBIC, box=(0, 0, columns, rows))
    return np.asarray(resized).clip(0)


def overlay_heat(image_rgb: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) image in gray, under the (H, W) ``heat`` relative to its own maximum."""
    relative = (heat / max(float(heat.max()), 1e-12))[..., None]
    gray = np.asarray(Image.fromarray(image_rgb).convert("L"), dtype=np.float32)[..., None]
    colors = _HEAT(relative[..., 0])[..., :3] * 255
    # The image stays visible under weak attention.
    opacity = 0.15 + 0.75 * relative**0.6
    return (gray * 0.75 * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def draw_panels(panels: list[Panel], columns: int) -> NDArray[np.uint8]:
    """Draw all panels row by row in one image: (H', W', 3) RGB."""
    cells = [_draw_panel(panel) for panel in panels]
    columns = min(columns, len(cells))
    width, height = cells[0].width + _GAP, cells[0].height + _GAP
    grid = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height + _GAP), "white")
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        grid.paste(cell, (_GAP + column * width, _GAP + row * height))
    return np.array(grid)


def _draw(
    image: NDArray, rows: list[tuple[Tensor, Panel]], note: str, record: AttentionRecord, index: int, per_head: bool
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
    boxes, marks = (tuple(x for _, panel in rows for x in getattr(panel, name)) for name in ("boxes", "marks"))
    panels = [Panel(image, "image" if rows else "no detections", note, boxes=boxes, marks=marks)]
    panels += [heat_panel(panel, weights.mean(dim=0)) for weights, panel in rows]
    return draw_panels(panels, _COLUMNS)


def _query_panel(image: NDArray, instances: Instances, query: int, class_names: Sequence[str | None] | None) -> Panel:
    """Describe the query's best detection, if it has one."""
    detections = instances[instances.queries == query]
    if not len(detections):
        return Panel(image, "no detection", f"query {query}")
    best = detections[int(detections.scores.argmax())]
    label, color = int(best.pred_classes), palette_color(int(best.pred_classes))
    caption = f"{class_name(class_names, label)} {float(best.scores):.0%}"
    boxes = ((tuple(best.pred_boxes.tensor[0].tolist()), color),)
    return Panel(image, caption, f"query {query}", color=color, boxes=boxes)


def _draw_panel(panel: Panel) -> Image.Image:
    """Draw the image under its caption, which may be wider."""
    height, width = panel.image.shape[:2]
    scale = _SIDE / max(height, width)
    image = Image.fromarray(panel.image).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    draw, small, font = ImageDraw.Draw(image), _font("DejaVu Sans", 12), _font("DejaVu Sans:bold", 15)
    for box, color in panel.boxes:
        x0, y0, x1, y1 = (x * scale for x in box)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white", width=4)
        draw.rectangle((x0, y0, x1, y1), outline=_rgb(color), width=2)
    for (x, y), text, color in panel.marks:
        center = x * scale, y * scale
        draw.circle(center, 8, fill=_rgb(color), outline="white", width=2)
        draw.text(center, text, "white", small, anchor="mm")
    corner = image.width - 5, image.height - 5
    draw.text(corner, panel.corner, "white", small, anchor="rs", stroke_width=1, stroke_fill="#404040")

    cell = Image.new("RGB", (max(image.width, _CAPTION_WIDTH), image.height + _CAPTION_HEIGHT), "white")
    cell.paste(image, (0, _CAPTION_HEIGHT))
    draw, baseline, indent = ImageDraw.Draw(cell), _CAPTION_HEIGHT - 9, 0
    draw.text((cell.width, baseline), panel.note, "#777777", small, anchor="rs")
    # The color may be too light for text: it fills a square before the caption.
    if panel.color is not None:
        draw.rectangle((0, baseline - 11, 11, baseline), fill=_rgb(panel.color))
        indent = 18
    # The caption shrinks to what the note leaves.
    available = max(cell.width - indent - small.getlength(panel.note) - _GAP, 1)
    shrunk = font.font_variant(size=font.size * min(1, available / max(font.getlength(panel.caption), 1)))
    draw.text((indent, baseline), panel.caption, "#222222", shrunk, anchor="ls")
    return cell


@functools.cache
def _font(name: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(name), size)


def _rgb(color: Color) -> tuple[int, ...]:
    return tuple(round(255 * x) for x in color)
