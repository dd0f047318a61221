"""Tiles of a large image, and one set of detections from those of its tiles."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from detr_d2.structures import Size
from detr_d2.utils.box_ops import iou

Window = tuple[int, int, int, int]
"""Left, top, right and bottom of a tile, in pixels of the image; the last two are exclusive."""

# A box is cut if it ends within this share of the tile's side from a border inside the image.
_MARGIN = 0.01
# Among duplicates, a detection that is cut counts as one with this share of its score; and only pieces whose scores
# differ by no more than this factor are joined. An unlikely detection never replaces or extends a likely one.
_CUT = 0.5


def tile_windows(image_size: Size, tile: int, overlap: float) -> list[Window]:
    """Return tiles that cover an image, row by row.

    All have the same size, ``tile`` x ``tile`` or a smaller image's side. Neighbors overlap by at least the share
    ``overlap`` of ``tile``, equally.
    """
    height, width = image_size
    tops, lefts = (_starts(x, tile, overlap) for x in image_size)
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y, x in product(tops, lefts)]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    steps = math.ceil((length - tile) / stride)
    return [i * (length - tile) // steps for i in range(steps + 1)]


def merge_tiles(
    results: Sequence[Instances], windows: Sequence[Window], image_size: Size, threshold: float = 0.5
) -> Instances:
    """Return the detections of an image from those of its tiles, on the CPU, the highest score first.

    Boxes are compared with boxes of the same class in other tiles; detections of one tile never affect each other. A
    box that reaches a border of its tile inside the image is cut: the object may go on.

    1. Cut boxes of two tiles are joined if their IoU within the pixels that both tiles see is ``threshold`` or more:
       pieces of an object that is larger than the overlap. The result has the enclosing box, the union of the masks,
       and everything else of the piece with the highest score.
    2. Of two detections only the better one is kept if their IoU, or the share of a cut box that the other one covers,
       is ``threshold`` or more. The better one has the higher score, where that of a cut one counts half.

    Args:
        results: detections of each tile, in its pixels, with ``pred_boxes``, ``scores``, ``pred_classes`` and other
            fields; ``pred_masks`` are (N, height, width) bool.
        windows: the tiles. A tile without a border inside the image, such as the whole image, cuts nothing.
        image_size: height and width of the image in pixels.
        threshold: see above.
    """
    if len(windows) == 1:
        return results[0].to("cpu")
    results = [x.to("cpu") for x in results]
    views = _views(results, windows, image_size)
    groups = []
    for label in views.classes.unique():
        rows = (views.classes == label).nonzero()[:, 0]
        groups += [rows[group] for group in _merge_class(views.at(rows), threshold)]
    groups.sort(key=lambda group: float(views.scores[group[0]]), reverse=True)
    return _assemble(results, windows, image_size, views, groups)


class _Views(NamedTuple):
    """N detections in pixels of the image."""

    boxes: Tensor  # (N, 4), not beyond the borders of their tiles inside the image.
    windows: Tensor  # (N, 4) their tiles,
    tiles: Tensor  # (N,) and the numbers of these.
    cut: Tensor  # (N,) bool
    scores: Tensor
    classes: Tensor

    def at(self, rows: Tensor) -> "_Views":
        return _Views(*(x[rows] for x in self))


def _views(results: Sequence[Instances], windows: Sequence[Window], image_size: Size) -> _Views:
    tiles = torch.repeat_interleave(torch.tensor([len(x) for x in results]))
    window = torch.tensor(windows, dtype=torch.float32)[tiles]
    boxes = torch.cat([x.pred_boxes.tensor for x in results]) + window[:, :2].repeat(1, 2)
    height, width = image_size
    inside = torch.stack((window[:, 0] > 0, window[:, 1] > 0, window[:, 2] < width, window[:, 3] < height), dim=1)
    outside = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
    low, high = torch.where(inside, window, outside).split(2, dim=1)
    boxes = torch.maximum(torch.minimum(boxes, high.repeat(1, 2)), low.repeat(1, 2))
    margin = _MARGIN * (window[:, 2:] - window[:, :2])
    cut = ((boxes[:, :2] <= low + margin) | (boxes[:, 2:] >= high - margin)).any(1)
    scores, classes = (torch.cat([x.get(name) for x in results]) for name in ("scores", "pred_classes"))
    return _Views(boxes, window, tiles, cut, scores, classes)


def _merge_class(views: _Views, threshold: float) -> list[Tensor]:
    """Return the rows of each detection that is kept: one row, or several to join, the highest score first."""
    count, labels = connected_components(_pieces(views, threshold).numpy(), directed=False)
    labels = torch.from_numpy(labels).long()
    rows = views.scores.argsort(descending=True, stable=True)
    groups = rows[labels[rows].argsort(stable=True)].split(labels.bincount().tolist())
    joined = views.at(torch.stack([x[0] for x in groups]))
    # What was joined belongs to no tile.
    tiles = [int(views.tiles[x[0]]) if len(x) == 1 else -1 - i for i, x in enumerate(groups)]
    joined = joined._replace(boxes=_enclosing(views.boxes, groups), tiles=torch.tensor(tiles))
    duplicates = _duplicates(joined, threshold)
    available = torch.ones(count, dtype=torch.bool)
    kept = []
    for i in torch.where(joined.cut, _CUT * joined.scores, joined.scores).argsort(descending=True, stable=True):
        if available[i]:
            kept.append(groups[i])
            available &= ~duplicates[i]
    return kept


def _pieces(views: _Views, threshold: float) -> Tensor:
    """Return (N, N) bool: whether two detections are pieces of one object."""
    a, b = views.windows[:, None], views.windows[None]
    shared = torch.cat((torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])), dim=-1)
    low, high = (x.repeat(1, 1, 2) for x in shared.split(2, dim=-1))
    seen = torch.maximum(torch.minimum(views.boxes[:, None], high), low)
    agree = iou(seen, seen.transpose(0, 1)) >= threshold
    comparable = views.scores[:, None] >= _CUT * views.scores
    both_cut = views.cut[:, None] & views.cut
    return agree & (high > low).all(-1) & comparable & comparable.T & both_cut & (views.tiles[:, None] != views.tiles)


def _duplicates(views: _Views, threshold: float) -> Tensor:
    """Return (N, N) bool: whether two detections are of one object, so that only one is kept."""
    boxes = views.boxes
    size = torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    covered = size.clamp(min=0).prod(-1) / area[:, None] >= threshold
    covered &= views.cut[:, None]
    same = (iou(boxes[:, None], boxes) >= threshold) | covered | covered.T
    return same & (views.tiles[:, None] != views.tiles)


def _enclosing(boxes: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return the (G, 4) smallest boxes around the boxes of G groups of rows."""
    corners = [torch.cat((boxes[x, :2].amin(0), boxes[x, 2:].amax(0))) for x in groups]
    return torch.stack(corners) if corners else boxes[:0]


def _assemble(
    results: Sequence[Instances], windows: Sequence[Window], image_size: Size, views: _Views, groups: list[Tensor]
) -> Instances:
    leaders = torch.tensor([int(x[0]) for x in groups], dtype=torch.int64)
    merged = Instances(image_size, pred_boxes=Boxes(_enclosing(views.boxes, groups)))
    for name in results[0].get_fields():
        if name not in ("pred_boxes", "pred_masks"):
            merged.set(name, torch.cat([x.get(name) for x in results])[leaders])
    if results[0].has("pred_masks"):
        masks = [(mask, window) for x, window in zip(results, windows, strict=True) for mask in x.pred_masks]
        merged.pred_masks = torch.zeros(len(groups), *image_size, dtype=torch.bool)
        for whole, group in zip(merged.pred_masks, groups, strict=True):
            for row in group.tolist():
                mask, (left, top, right, bottom) = masks[row]
                whole[top:bottom, left:right] |= mask
    return merged
