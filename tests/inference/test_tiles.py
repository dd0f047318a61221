"""Merging of detections, on hand-made cases: two tiles of 100 x 100, whose shared strip is x from 80 to 100."""

from itertools import pairwise

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr_d2.inference.tiles import merge_tiles, tile_windows

SIZE = (100, 180)
WINDOWS = [(0, 0, 100, 100), (80, 0, 180, 100)]


def detect(window, *found):
    """Return detections of a tile, from boxes in pixels of the image, with a score and perhaps a class."""
    left, top, right, bottom = window
    boxes = torch.tensor([x[0] for x in found], dtype=torch.float32).reshape(-1, 4)
    boxes -= torch.tensor([left, top, left, top])
    instances = Instances((bottom - top, right - left), pred_boxes=Boxes(boxes))
    instances.scores = torch.tensor([float(x[1]) for x in found])
    instances.pred_classes = torch.tensor([x[2] if len(x) > 2 else 0 for x in found], dtype=torch.int64)
    instances.queries = torch.arange(len(found))
    return instances


def merge(first, second, **settings):
    results = [detect(window, *found) for window, found in zip(WINDOWS, (first, second), strict=True)]
    merged = merge_tiles(results, WINDOWS, SIZE, **settings)
    assert merged.image_size == SIZE
    return [
        (box, pytest.approx(score), label)
        for box, score, label in zip(
            merged.pred_boxes.tensor.tolist(), merged.scores.tolist(), merged.pred_classes.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([([10, 20, 40, 50], 0.9)], [([120, 20, 150, 50], 0.8)], [(0, 0), (1, 0)], id="inside one tile"),
        pytest.param([([83, 20, 95, 50], 0.7)], [([83, 20, 95, 50], 0.8)], [(1, 0)], id="in the overlap"),
        pytest.param([([83, 20, 95, 50], 0.7, 1)], [([83, 20, 95, 50], 0.8)], [(1, 0), (0, 0)], id="other classes"),
        pytest.param([([60, 20, 95, 50], 0.5)], [([80, 20, 95, 50], 0.8)], [(0, 0)], id="cut by one tile"),
        pytest.param([([60, 20, 82, 50], 0.5)], [([80, 20, 83, 50], 0.8)], [(0, 0)], id="a sliver"),
        pytest.param([([60, 20, 95, 50], 0.1)], [([80, 20, 95, 50], 0.8)], [(1, 0)], id="unlikely, though not cut"),
        pytest.param([([60, 20, 81, 50], 0.9)], [([82, 20, 130, 50], 0.8)], [(0, 0), (1, 0)], id="neighbors"),
        pytest.param([([30, 20, 50, 50], 0.9), ([31, 20, 50, 50], 0.3)], [], [(0, 0), (0, 1)], id="same tile"),
        pytest.param(
            [([60, 0, 100, 20], 0.9)], [([80, 50, 120, 70], 0.8)], [(0, 0), (1, 0)], id="cut, but different objects"
        ),
        pytest.param(
            [([60, 20, 100, 50], 0.9)], [([80, 20, 170, 50], 0.2)], [(0, 0)], id="unlikely pieces extend nothing"
        ),
    ],
)
def test_which_is_kept(first, second, expected):
    found = [first, second]
    expected = [found[tile][i] for tile, i in expected]
    assert merge(first, second) == [(box, score, label[0] if label else 0) for box, score, *label in expected]


def test_an_object_across_a_border_is_joined():
    """Larger than the overlap: no tile has it whole. Boxes beyond the tile are guesses, and do not count."""
    merged = merge([([60, 20, 140, 50], 0.7)], [([80, 21, 130, 52], 0.9)])
    assert merged == [([60, 20, 130, 52], 0.9, 0)]


def test_masks_are_the_union_of_the_pieces():
    """In the strip that both tiles see, too, where the two differ."""
    pieces = [([60, 20, 100, 50], 0.7)], [([80, 25, 130, 55], 0.9)]
    results = [detect(window, *found) for window, found in zip(WINDOWS, pieces, strict=True)]
    expected = torch.zeros(1, *SIZE, dtype=torch.bool)
    for x, (left, top, right, bottom) in zip(results, ((60, 20, 100, 50), (80, 25, 130, 55)), strict=True):
        x.pred_masks = torch.zeros(1, 100, 100, dtype=torch.bool)
        shift = 80 if x is results[1] else 0
        x.pred_masks[:, top:bottom, left - shift : right - shift] = True
        expected[:, top:bottom, left:right] = True
    assert torch.equal(merge_tiles(results, WINDOWS, SIZE).pred_masks, expected)


def test_the_threshold():
    """The strip that both see is 20 wide, of which they agree on rows 30 to 50 of 20 to 60."""
    pieces = [([60, 20, 100, 50], 0.7)], [([80, 30, 130, 60], 0.9)]
    assert len(merge(*pieces, threshold=0.5)) == 1
    assert len(merge(*pieces, threshold=0.51)) == 2


def test_the_whole_image_has_what_no_tile_has():
    windows = [*WINDOWS, (0, 0, 180, 100)]
    results = [
        detect(windows[0], ([60, 20, 100, 50], 0.9), ([5, 5, 15, 15], 0.8)),
        detect(windows[1], ([80, 20, 130, 50], 0.9)),
        detect(windows[2], ([61, 20, 131, 50], 0.6)),
    ]
    merged = merge_tiles(results, windows, SIZE)
    assert merged.pred_boxes.tensor.tolist() == [[5, 5, 15, 15], [61, 20, 131, 50]]
    assert merged.queries.tolist() == [1, 0]


def test_nothing_found():
    results = [detect(window) for window in WINDOWS]
    for x in results:
        x.pred_masks = torch.zeros(0, *x.image_size, dtype=torch.bool)
    merged = merge_tiles(results, WINDOWS, SIZE)
    assert len(merged) == 0
    assert merged.pred_boxes.tensor.shape == (0, 4)
    assert merged.pred_masks.shape == (0, *SIZE)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("length", [30, 64, 65, 100, 128, 1000])
def test_tiles_cover_the_image_with_the_overlap(length, overlap):
    windows = tile_windows((40, length), 64, overlap)
    assert {x[1::2] for x in windows} == {(0, 40)}
    assert windows[0][0] == 0
    assert windows[-1][2] == length
    assert {right - left for left, _, right, _ in windows} == {min(length, 64)}
    shared = [a[2] - b[0] for a, b in pairwise(windows)]
    assert all(x >= overlap * 64 for x in shared)
    # One tile fewer would not cover it.
    stride = 64 * (1 - overlap)
    assert len(windows) == 1 or (len(windows) - 2) * stride + 64 < length


def test_a_pixel_more_than_a_tile_makes_two():
    assert tile_windows((100, 101), 100, 0.2) == [(0, 0, 100, 100), (1, 0, 101, 100)]
    assert tile_windows((100, 100), 100, 0.2) == [(0, 0, 100, 100)]
