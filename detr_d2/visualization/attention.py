"""Where a DETR looks: its attention as heat maps over the image."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr_d2.modeling import AttentionRecord
from detr_d2.utils.errors import UserError
from detr_d2.visualization.instances import class_colour, class_name
from detr_d2.visualization.panels import Panel, draw_panels

_HEAT = colormaps["inferno"]
_COLUMNS = 3
_POINT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class _Row(NamedTuple):
    """Something that looks at the image: an object query, or a point of the image itself."""

    weights: Tensor
    """(heads, H, W)"""
    caption: str
    note: str = ""
    colour: tuple[float, float, float] | str | None = None
    boxes: tuple = ()
    marks: tuple = ()


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
    """The image with the boxes of some object queries, then a heat map a query of its cross attention.

    Args:
        image_rgb: (H, W, 3) the whole image, of any size.
        instances: its detections, with boxes in pixels of ``image_rgb`` and ``queries``, as the model returns them.
        record: of the forward pass that found them, see :func:`~detr_d2.modeling.record_attention`.
        class_names: by class; "class 3" where there is none.
        queries: whose attention to draw; by default those of the ``top`` best detections.
        index: the image's number in the batch.
        layer: of the decoder; negative numbers count from the last.
        per_head: a heat map for every head instead of their mean.

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
    rows = [_query_row(instances, q, weights[:, q], class_names) for q in chosen]
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
    """The image with numbered points, then a heat map a point of where the encoder looks from there.

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
        colour = _POINT_COLOURS[i % len(_POINT_COLOURS)]
        weights = record.self_attention((float(x), float(y)), index, layer)
        marks = (((x * width, y * height), str(i + 1), colour),)
        rows.append(_Row(weights, f"from point {i + 1}", colour=colour, marks=marks))
    return _draw(image_rgb, rows, _layer_note(record.encoder, layer, "encoder"), record, index, per_head)


def heat_map(weights: Tensor, record: AttentionRecord, size: tuple[int, int], index: int = 0) -> NDArray[np.float32]:
    """(H, W) weights over the features -> an array of ``size``, height and width of the whole image, without padding.

    A feature covers the square of ``record.stride`` pixels that it stands for; between the centres the weights are
    interpolated.
    """
    height, width = weights.shape
    extents = (x / record.stride for x in record.image_sizes[index])
    # Where a backbone floors the size of its features, the last ones cover a little more.
    rows, columns = (min(x, limit) for x, limit in zip(extents, (height, width), strict=True))
    image = Image.fromarray(weights.detach().float().cpu().numpy())
    resized = image.resize(size[::-1], Image.Resampling.BICUBIC, box=(0, 0, columns, rows))
    return np.asarray(resized).clip(0)


def overlay_heat(image_rgb: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3): the image in gray, and over it what ``heat``, (H, W), lights up relative to its own maximum."""
    relative = (heat / max(float(heat.max()), 1e-12))[..., None]
    gray = np.asarray(Image.fromarray(image_rgb).convert("L"), dtype=np.float32)[..., None]
    colours = _HEAT(relative[..., 0])[..., :3] * 255
    # Weak attention leaves the image to be seen.
    opacity = 0.15 + 0.75 * relative**0.6
    return (gray * 0.75 * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def _draw(image: NDArray[np.uint8], rows: list[_Row], note: str, record: AttentionRecord, index: int, per_head: bool):
    """The image and a heat map a row; with ``per_head`` the image and a heat map a head, in a row of pictures each."""
    if per_head and rows:
        panels = [panel for row in rows for panel in _head_panels(image, row, note, record, index)]
        return draw_panels(panels, len(panels) // len(rows))
    boxes = tuple(box for row in rows for box in row.boxes)
    marks = tuple(mark for row in rows for mark in row.marks)
    panels = [Panel(image, "image" if rows else "no detections", note, boxes=boxes, marks=marks)]
    panels += [_heat_panel(image, row, row.weights.mean(dim=0), record, index) for row in rows]
    return draw_panels(panels, _COLUMNS)


def _head_panels(
    image: NDArray[np.uint8], row: _Row, note: str, record: AttentionRecord, index: int
) -> Iterator[Panel]:
    yield Panel(image, row.caption, row.note, note, row.colour, row.boxes, row.marks)
    for i, weights in enumerate(row.weights):
        yield _heat_panel(image, row._replace(caption=f"head {i}", note=""), weights, record, index)


def _heat_panel(image: NDArray[np.uint8], row: _Row, weights: Tensor, record: AttentionRecord, index: int) -> Panel:
    picture = overlay_heat(image, heat_map(weights, record, image.shape[:2], index))
    peak = f"largest weight {float(weights.max()):.2g}"
    return Panel(picture, row.caption, row.note, peak, row.colour, row.boxes, row.marks)


def _query_row(instances: Instances, query: int, weights: Tensor, class_names: Sequence[str | None] | None) -> _Row:
    """The query's best detection, if it has one, and its (heads, H, W) weights."""
    found = instances[instances.queries == query]
    if not len(found):
        return _Row(weights, "no detection", f"query {query}")
    best = found[int(found.scores.argmax())]
    class_index = int(best.pred_classes)
    colour = class_colour(class_index)
    caption = f"{class_name(class_names, class_index)} {float(best.scores):.0%}"
    box = tuple(best.pred_boxes.tensor[0].tolist())
    return _Row(weights, caption, f"query {query}", colour, boxes=((box, colour),))


def _best_queries(instances: Instances, count: int) -> list[int]:
    order = instances.scores.argsort(descending=True, stable=True)
    # With focal loss a query may be found under several classes.
    return list(dict.fromkeys(instances.queries[order].tolist()))[:count]


def _layer_note(layers: list[Tensor], layer: int, part: str) -> str:
    return f"{part} layer {layer % len(layers) + 1} of {len(layers)}"
