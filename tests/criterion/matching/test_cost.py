import pytest
import torch
from detr.util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from torch.testing import assert_close

from detr_d2.criterion.matching import HungarianMatcher, MatchingCost, build_matcher
from detr_d2.structures import Output, Targets
from detr_d2.utils.errors import UserError


def random_problem(layers=2, counts=(3, 1), queries=6, classes=4):
    logits = torch.randn(layers, len(counts), queries, classes + 1)
    boxes = torch.rand(layers, len(counts), queries, 4) * 0.4 + 0.1
    targets = Targets(
        torch.randint(classes, (len(counts), max(counts))), torch.rand(len(counts), max(counts), 4) * 0.4 + 0.1, counts
    )
    return Output(logits, boxes), targets


def test_is_the_originals():
    output, targets = random_problem()
    cost = MatchingCost(class_weight=1.5, l1_weight=5.0, giou_weight=2.0)(output, targets)
    for layer in range(2):
        for image, count in enumerate(targets.counts):
            logits, boxes = output.logits[layer, image], output.boxes[layer, image]
            expected_boxes = targets.boxes[image, :count]
            expected = (
                -1.5 * logits.softmax(-1)[:, targets.labels[image, :count]]
                + 5.0 * torch.cdist(boxes, expected_boxes, p=1)
                - 2.0 * generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(expected_boxes))
            )
            assert_close(cost[layer, image, :, :count], expected, atol=1e-6, rtol=1e-6)


def test_is_float32_under_autocast():
    """Logits of +-60 in half precision give the match of float32."""
    output, targets = random_problem(queries=20, counts=(8, 5))
    extreme = Output(output.logits.sign() * 60, output.boxes)
    expected = MatchingCost()(extreme, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = MatchingCost()(extreme, targets)
    assert cost.dtype == torch.float32
    assert_close(cost, expected, atol=0, rtol=0)
    half = MatchingCost()(Output(extreme.logits.half(), extreme.boxes), targets)
    assert HungarianMatcher()(half, targets.counts).tolist() == HungarianMatcher()(expected, targets.counts).tolist()


def test_identical_boxes_get_distinct_queries():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    targets = Targets(torch.zeros(1, 3, dtype=torch.int64), box.expand(1, 3, 4), (3,))
    output = Output(torch.zeros(1, 1, 5, 2), box.expand(1, 1, 5, 4))
    matches = HungarianMatcher()(MatchingCost()(output, targets), targets.counts)
    assert len(set(matches.flatten().tolist())) == 3


def test_weights_follow_the_losses_unless_set(make_cfg):
    cost = MatchingCost(make_cfg("MODEL.DETR.L1_WEIGHT", 10.0, "MODEL.DETR.GIOU_WEIGHT", 3.0))
    assert (cost.class_weight, cost.l1_weight, cost.giou_weight) == (1.0, 10.0, 3.0)
    cost = MatchingCost(make_cfg("MODEL.DETR.L1_WEIGHT", 10.0, "MODEL.DETR.COST_L1", 0.0))
    assert cost.l1_weight == 0.0


def test_unknown_matcher(make_cfg):
    with pytest.raises(UserError, match=r"MODEL.DETR.MATCHER is 'Greedy': choose one of .*HungarianMatcher"):
        build_matcher(make_cfg("MODEL.DETR.MATCHER", "Greedy"))
