"""Panoptic results against the original's PostProcessPanoptic, and hand-made cases."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detr.models.segmentation import PostProcessPanoptic
from PIL import Image

from detr_d2 import add_detr_config
from detr_d2.modeling.postprocessing import PanopticRules, panoptic_segmentation
from detr_d2.utils.errors import UserError

# Three things, then three kinds of stuff.
IS_THING = (True, True, True, False, False, False)
RULES = PanopticRules(is_thing=IS_THING)
ORIGINAL = replace(RULES, merge_after_removal=False)

# Mask logits; the image's, the result's size. As large, larger, smaller than the image, and odd.
SIZES = [
    ((12, 16), (48, 64), (48, 64)),
    ((12, 16), (45, 61), (93, 131)),
    ((25, 17), (100, 67), (53, 41)),
    ((7, 9), (27, 33), (18, 22)),
    ((9, 30), (34, 117), (1, 351)),
]


def confident(classes: list[int], probability: float = 0.95, num_classes: int = len(IS_THING)) -> torch.Tensor:
    """Return (len(classes), num_classes + 1) logits with which each query has its class with this probability."""
    rest = (1 - probability) / num_classes
    probabilities = torch.full((len(classes), num_classes + 1), rest, dtype=torch.float64)
    probabilities[range(len(classes)), classes] = probability
    return probabilities.log().float()


def layers(*maps: list[list[float]]) -> torch.Tensor:
    return torch.tensor(maps, dtype=torch.float32)


def segment(logits, masks, size, output_size=None, rules=RULES, padded_size=None):
    """Select the confident queries, and segment by their masks."""
    selected = rules.select(logits)
    return panoptic_segmentation(
        selected,
        masks[selected.queries],
        padded_size=padded_size or size,
        image_size=size,
        output_size=output_size or size,
        rules=rules,
    )


def original(logits, masks, size, output_size, threshold=0.85):
    """Return the original's id map (H, W), whose ids count from 0, and its segments."""
    post = PostProcessPanoptic(dict(enumerate(IS_THING)), threshold)
    outputs = {"pred_logits": logits[None], "pred_masks": masks[None], "pred_boxes": torch.zeros(1, len(logits), 4)}
    result = post(outputs, [size], [output_size])[0]
    image = np.array(Image.open(io.BytesIO(result["png_string"]))).astype(np.int64)
    return image @ [1, 256, 65536], result["segments_info"]


def assert_same(found, expected):
    ids, infos = found
    expected_ids, expected_infos = expected
    assert ids.dtype == torch.int32
    if expected_infos:
        np.testing.assert_array_equal(ids.numpy(), expected_ids + 1)
    else:
        assert not ids.any()
    assert [(x["id"], x["isthing"], x["category_id"], x["area"]) for x in infos] == [
        (x["id"] + 1, x["isthing"], x["category_id"], x["area"]) for x in expected_infos
    ]


def random_case(seed: int, mask_size: tuple[int, int], num_queries: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, about half of them confident, and masks of which some segments are tiny."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(num_queries, len(IS_THING) + 1, generator=generator)
    offsets = 1.5 * torch.randn(num_queries, 1, 1, generator=generator)
    return logits, torch.randn(num_queries, *mask_size, generator=generator) + offsets


@pytest.mark.parametrize(("mask_size", "size", "output_size"), SIZES)
@pytest.mark.parametrize("seed", range(6))
def test_results_are_the_originals(seed, mask_size, size, output_size):
    """With ``merge_after_removal`` off."""
    logits, masks = random_case(seed, mask_size)
    expected = original(logits, masks, size, output_size)
    assert_same(segment(logits, masks, size, output_size, ORIGINAL), expected)


def test_the_random_cases_remove_and_merge():
    """Otherwise the comparison would not test it."""
    removals = merges = 0
    for seed in range(6):
        for mask_size, size, output_size in SIZES:
            logits, masks = random_case(seed, mask_size)
            scores, classes = logits.softmax(-1).max(-1)
            kept = classes[(scores > 0.85) & (classes < 6)].tolist()
            _, infos = segment(logits, masks, size, output_size)
            distinct = len({c if c >= 3 else (c, i) for i, c in enumerate(kept)})
            merges += distinct < len(kept)
            removals += len(infos) < distinct
    assert removals >= 10
    assert merges >= 20


@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_first_query_as_in_the_original(seed):
    """Integer logits at the size of the image tie everywhere."""
    generator = torch.Generator().manual_seed(seed)
    logits, _ = random_case(seed, (1, 1))
    masks = torch.randint(-2, 3, (24, 30, 40), generator=generator).float()
    for output_size in ((30, 40), (20, 60)):
        expected = original(logits, masks, (30, 40), output_size)
        assert_same(segment(logits, masks, (30, 40), output_size, ORIGINAL), expected)


@pytest.mark.parametrize("seed", range(4))
def test_both_rules_agree_while_nothing_is_removed(seed):
    """With things only, all of them large."""
    masks = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(seed))
    logits = confident([0, 1, 0])
    merged, original = (segment(logits, masks, (24, 24), rules=rules) for rules in (RULES, ORIGINAL))
    assert torch.equal(merged[0], original[0])
    assert merged[1] == original[1]


def test_nothing_over_the_threshold_is_all_void():
    masks = torch.randn(3, 4, 4)
    for logits in (confident([0, 3, 4], probability=0.84), confident([6, 6, 6])):
        ids, infos = segment(logits, masks, (8, 8), (5, 7))
        assert ids.shape == (5, 7)
        assert ids.dtype == torch.int32
        assert not ids.any()
        assert infos == []


def test_all_segments_too_small_is_all_void():
    ids, infos = segment(confident([0, 3]), torch.randn(2, 2, 2), (2, 2))
    assert ids.tolist() == [[0, 0], [0, 0]]
    assert infos == []


def test_a_score_at_the_threshold_is_too_low():
    """As in the original; two classes of one query have probabilities of exactly a half."""
    logits = torch.full((1, 7), -torch.inf)
    logits[0, :2] = 0
    masks = torch.ones(1, 3, 3)
    assert segment(logits, masks, (3, 3), rules=replace(RULES, score_threshold=0.5))[1] == []
    assert original(logits, masks, (3, 3), (3, 3), threshold=0.5)[1] == []
    assert len(segment(logits, masks, (3, 3), rules=replace(RULES, score_threshold=0.49))[1]) == 1


@pytest.mark.parametrize("merge", [True, False])
def test_segments_without_pixels_are_left_out(merge):
    """Also with the smallest ``min_area``: a thing that is nowhere first, and the second query of stuff."""
    masks = layers([[9, 0]], [[0, 9]], [[1, 1]])
    rules = replace(RULES, min_area=0, merge_after_removal=merge)
    ids, infos = segment(confident([4, 4, 0]), masks, (1, 2), rules=rules)
    assert [(x["category_id"], x["area"]) for x in infos] == [(4, 2)]
    assert ids.tolist() == [[1, 1]]


def test_confident_queries_are_selected():
    logits = torch.cat([confident([0, 6]), confident([3], probability=0.5), confident([4])])
    selected = RULES.select(logits)
    assert selected.queries.tolist() == [0, 3]
    assert selected.classes == [0, 4]
    assert selected.scores == pytest.approx([0.95, 0.95])
    sizes = {"padded_size": (4, 4), "image_size": (4, 4), "output_size": (4, 4)}
    _, infos = panoptic_segmentation(selected, torch.zeros(2, 4, 4), **sizes, rules=RULES)
    assert [x["category_id"] for x in infos] == [0]
    assert RULES.select(confident([6, 6])).queries.tolist() == []


# Stuff left and right, by two queries of one class; on its right half two pixels of a thing; and a thing that is second
# everywhere, and first in a corner.
STUFF_LEFT = [[9, 9, 9, 0, 0, 0], [9, 9, 9, 0, 0, 0], [9, 9, 9, 0, 0, 0]]
STUFF_RIGHT = [[0, 0, 0, 9, 9, 9], [0, 0, 0, 9, 9, 9], [0, 0, 0, 9, 9, 9]]
TINY = [[0, 0, 0, 10, 0, 0], [0, 0, 0, 10, 0, 0], [0, 0, 0, 0, 0, 0]]
SECOND = [[5, 5, 5, 5, 10, 10], [5, 5, 5, 5, 5, 10], [5, 5, 5, 5, 10, 10]]


def test_stuff_stays_merged_when_a_small_segment_is_removed():
    masks = layers(STUFF_LEFT, STUFF_RIGHT, TINY, SECOND)
    ids, infos = segment(confident([4, 4, 1, 0]), masks, (3, 6))
    assert ids.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 2, 2]]
    assert [(x["id"], x["isthing"], x["category_id"], x["area"]) for x in infos] == [
        (1, False, 4, 13),
        (2, True, 0, 5),
    ]


def test_the_original_splits_merged_stuff_when_a_small_segment_is_removed():
    """The pixels of the second query go to the thing that is second there."""
    masks = layers(STUFF_LEFT, STUFF_RIGHT, TINY, SECOND)
    logits = confident([4, 4, 1, 0])
    expected = original(logits, masks, (3, 6), (3, 6))
    assert expected[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 3
    assert_same(segment(logits, masks, (3, 6), rules=ORIGINAL), expected)


def test_the_area_of_stuff_is_that_of_its_class():
    """Two queries of 3 pixels each are a segment of 6; the same two as things are too small."""
    first, second = [[9, 9, 9, 0, 0, 0]], [[0, 0, 0, 9, 9, 9]]
    ids, infos = segment(confident([5, 5]), layers(first, second), (1, 6))
    assert ids.tolist() == [[1] * 6]
    assert [x["area"] for x in infos] == [6]
    ids, infos = segment(confident([1, 1]), layers(first, second), (1, 6))
    assert ids.tolist() == [[0] * 6]
    assert infos == []


def test_things_of_one_class_stay_apart():
    first, second = [[9] * 5 + [0] * 5], [[0] * 5 + [9] * 5]
    ids, infos = segment(confident([1, 1]), layers(first, second), (1, 10))
    assert ids.tolist() == [[1] * 5 + [2] * 5]
    assert [(x["isthing"], x["category_id"]) for x in infos] == [(True, 1), (True, 1)]


@pytest.mark.parametrize("merged", [(0.9, 0.97), (0.97, 0.9)])
def test_the_score_of_merged_queries_is_the_highest(merged):
    logits = torch.cat([*(confident([4], score) for score in merged), confident([0], 0.93)])
    _, infos = segment(
        logits, layers([[9] * 5 + [0] * 10], [[0] * 5 + [9] * 5 + [0] * 5], [[0] * 10 + [9] * 5]), (1, 15)
    )
    assert [x["score"] for x in infos] == pytest.approx([0.97, 0.93], abs=1e-5)


def test_padding_is_cut_off_before_the_winners_are_resized():
    """An image in a batch has the segments that it has alone."""
    generator = torch.Generator().manual_seed(0)
    alone = torch.randn(3, 6, 8, generator=generator)
    padded = 20 * torch.randn(3, 10, 9, generator=generator)
    padded[:, :6, :8] = alone
    logits = confident([0, 3, 4])
    expected, expected_infos = segment(logits, alone, (24, 32), (50, 60))
    ids, infos = segment(logits, padded, (24, 32), (50, 60), padded_size=(40, 36))
    inside = np.s_[:46, :56]
    assert torch.equal(ids[inside], expected[inside])
    assert [(x["id"], x["category_id"]) for x in infos] == [(x["id"], x["category_id"]) for x in expected_infos]


def test_sigmoid_heads_score_classes_one_by_one():
    """0.9 and 0.95 are above the threshold, whatever the others are; the last column, no-object, is not used."""
    logits = torch.tensor([[0.9, 0.89, 0.1, 0.1, 0.1, 0.1, 0.99], [0.8, 0.1, 0.1, 0.1, 0.95, 0.1, 0.01]]).logit()
    logits = torch.cat([logits, torch.full((1, 7), 0.84).logit()])
    masks = layers([[9] * 5 + [0] * 5], [[0] * 5 + [9] * 5], [[99] * 10])
    ids, infos = segment(logits, masks, (1, 10), rules=replace(RULES, class_loss="focal"))
    assert ids.tolist() == [[1] * 5 + [2] * 5]
    assert [x["category_id"] for x in infos] == [0, 4]
    assert [x["score"] for x in infos] == pytest.approx([0.9, 0.95])


def test_half_precision_logits():
    logits, masks = random_case(0, (12, 16))
    ids, infos = segment(logits.bfloat16(), masks.bfloat16(), (48, 64))
    expected, _ = segment(logits.bfloat16().float(), masks.bfloat16().float(), (48, 64))
    assert torch.equal(ids, expected)
    assert sum(x["area"] for x in infos) == 48 * 64


def test_rules_of_a_config():
    cfg = get_cfg()
    add_detr_config(cfg)
    assert PanopticRules.from_config(cfg, list(IS_THING)) == RULES
    options = ["SCORE_THRESHOLD", 0.5, "MIN_AREA", 9, "MERGE_AFTER_REMOVAL", False]
    keys = [f"MODEL.DETR.PANOPTIC.{x}" if isinstance(x, str) else x for x in options]
    cfg.merge_from_list([*keys, "MODEL.DETR.CLASS_LOSS", "focal"])
    assert PanopticRules.from_config(cfg, IS_THING) == PanopticRules(IS_THING, 0.5, 9, False, "focal")
    with pytest.raises(UserError, match="CLASS_LOSS is 'hinge'"):
        segment(confident([0]), torch.zeros(1, 2, 2), (2, 2), rules=replace(RULES, class_loss="hinge"))
