import pytest
import torch
from torch.testing import assert_close

from detr_d2.criterion import SetCriterion
from detr_d2.criterion.matching import HungarianMatcher, MatchingCost
from detr_d2.structures import Output, Targets


@pytest.fixture
def criterion():
    return SetCriterion(num_classes=4, cost=MatchingCost(), matcher=HungarianMatcher())


def problem(layers=3, counts=(3, 1), queries=6, classes=4, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, classes + 1, requires_grad=True)
    boxes = (torch.rand(layers, len(counts), queries, 4) * 0.4 + 0.1).requires_grad_()
    width = max(counts)
    labels = torch.randint(classes, (len(counts), width))
    targets = Targets(labels, torch.rand(len(counts), width, 4) * 0.4 + 0.1, counts)
    return Output(logits, boxes), targets


def compute_losses(criterion, output, targets):
    return criterion.losses(output, targets, criterion.match(output, targets))


def original_inputs(output, targets):
    layers = [
        {"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in zip(output.logits, output.boxes, strict=True)
    ]
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    rows = zip(targets.labels, targets.boxes, targets.counts, strict=True)
    return outputs, [{"labels": labels[:n], "boxes": boxes[:n]} for labels, boxes, n in rows]


@pytest.mark.parametrize("counts", [(3, 1), (1,), (6, 0, 2), (9, 2)], ids=str)
def test_every_value_is_the_originals(make_cfg, make_original_criterion, counts):
    """Losses of all layers, class error and cardinality error; also with more objects than queries."""
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 4)
    output, targets = problem(counts=counts)
    losses, metrics = compute_losses(SetCriterion(cfg), output, targets)
    original = make_original_criterion(cfg)
    expected = original(*original_inputs(output, targets))
    for name, value in expected.items():
        if name.startswith("loss"):
            assert_close(losses[name], value * original.weight_dict[name], rtol=1e-5, atol=0)
            assert_close(metrics[name.replace("loss_", "unweighted/")], value.detach(), rtol=1e-5, atol=0)
        else:
            assert_close(metrics[name], value, rtol=1e-5, atol=1e-5)
    assert len(losses) + len(metrics) == len(expected) + len(losses)

    expected_total = sum(expected[name] * weight for name, weight in original.weight_dict.items())
    for ours, gradient in zip(
        torch.autograd.grad(sum(losses.values()), output[:2]),
        torch.autograd.grad(expected_total, output[:2]),
        strict=True,
    ):
        assert_close(ours, gradient, rtol=1e-4, atol=1e-6)


def test_losses_are_weighted_terms_only(criterion):
    """Metrics are not in the dict whose values Detectron2 sums up."""
    losses, metrics = compute_losses(criterion, *problem(layers=2))
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"}
    assert {"class_error", "cardinality_error", "cardinality_error_0", "unweighted/ce"} <= set(metrics)
    assert not any(value.requires_grad for value in metrics.values())


def test_one_layer_has_no_auxiliary_losses(criterion):
    losses, _ = compute_losses(criterion, *problem(layers=1))
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"}


@pytest.mark.parametrize("counts", [(0,), (0, 0)], ids=str)
def test_no_objects(criterion, counts):
    """The class loss is finite; box losses are zero and have gradients."""
    output, targets = problem(counts=counts)
    losses, metrics = compute_losses(criterion, output, targets)
    assert losses["loss_ce"] > 0
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    assert "class_error" not in metrics
    sum(losses.values()).backward()
    assert output.logits.grad.abs().sum() > 0
    assert output.boxes.grad.abs().sum() == 0


def test_is_float32_under_autocast(criterion):
    """Losses are finite with logits of +-60, and equal to those in float32."""
    output, targets = problem()
    extreme = Output(output.logits.sign() * 60, output.boxes)
    expected, _ = compute_losses(criterion, extreme, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = compute_losses(criterion, Output(extreme.logits.bfloat16(), extreme.boxes), targets)
    for name, value in expected.items():
        assert torch.isfinite(value)
        assert losses[name].dtype == torch.float32
        assert_close(losses[name], value, rtol=1e-6, atol=0)


def test_matchers_run_in_float32_under_autocast():
    """Products of a matcher stay in float32, too."""
    seen = []

    def matcher(cost, counts):
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return HungarianMatcher()(cost, counts)

    criterion = SetCriterion(num_classes=4, cost=MatchingCost(), matcher=matcher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compute_losses(criterion, *problem())
    assert seen == [torch.float32]


def test_nan_predictions_are_reported(criterion):
    output, targets = problem()
    with torch.no_grad():
        output.boxes.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="contain NaN or infinity"):
        criterion.match(output, targets)
