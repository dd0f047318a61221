import pytest
import torch
from detr.models.segmentation import dice_loss as original_dice_loss
from detr.models.segmentation import sigmoid_focal_loss as original_focal_loss
from torch.testing import assert_close

from detr_d2.criterion import masks as module
from detr_d2.criterion.criterion import SetCriterion
from detr_d2.criterion.mask_losses import MaskPredictor, dice_loss, mask_losses, matched_pairs, sigmoid_focal_loss
from detr_d2.structures import Output, Targets

CLASSES, QUERIES = 4, 6
SIZE = (24, 40)
IMAGE_SIZES = [(24, 30), (17, 40), (20, 20)]


@pytest.fixture
def problem():
    """A function that makes predictions, targets and the mask logits (B, Q, h, w) of every query."""

    def make(counts, layers=2, seed=0):
        torch.manual_seed(seed)
        batch, most = len(counts), max(counts)
        logits = torch.randn(layers, batch, QUERIES, CLASSES + 1)
        boxes = torch.rand(layers, batch, QUERIES, 4) * 0.4 + 0.1
        sizes = IMAGE_SIZES[:batch]
        masks = tuple(torch.rand(n, *size) < 0.3 for n, size in zip(counts, sizes, strict=True))
        labels = torch.randint(CLASSES, (batch, most))
        targets = Targets(labels, torch.rand(batch, most, 4) * 0.4 + 0.1, counts, masks)
        every_mask = (torch.randn(batch, QUERIES, 6, 10) * 3).requires_grad_()
        return Output(logits, boxes), targets, every_mask

    return make


def predictor(every_mask, size=SIZE):
    def logits(pairs):
        return every_mask[pairs.images, pairs.queries].split(pairs.counts)

    return MaskPredictor(logits, QUERIES, (size,) * len(every_mask))


def original_losses(make_cfg, make_original_criterion, predictions, targets, every_mask):
    criterion = make_original_criterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))
    criterion.losses = ["masks"]
    outputs = {"pred_logits": predictions.logits[-1], "pred_boxes": predictions.boxes[-1], "pred_masks": every_mask}
    rows = zip(targets.labels, targets.boxes, targets.masks, strict=True)
    rows = [{"labels": a[: len(m)], "boxes": b[: len(m)], "masks": m} for a, b, m in rows]
    return criterion(outputs, rows)


@pytest.mark.parametrize("counts", [(3,), (3, 1), (6, 0, 2), (0, 5, 6), (9, 2, 0)], ids=str)
@pytest.mark.parametrize("at_once", [2, 16])
def test_values_and_gradients_are_the_originals(
    make_cfg, make_original_criterion, problem, monkeypatch, counts, at_once
):
    """Padded batches, images without objects, and more objects than queries. Edge cases C1, C4 and C25."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    predictions, targets, every_mask = problem(counts)
    padded = tuple(max(size[axis] for size in IMAGE_SIZES[: len(counts)]) for axis in (0, 1))
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES, "MODEL.DETR.MASK.FOCAL_WEIGHT", 3.0)
    losses, metrics = SetCriterion(cfg)(predictions, targets, predictor(every_mask, padded))
    expected = original_losses(make_cfg, make_original_criterion, predictions, targets, every_mask)
    assert_close(losses["loss_mask"], 3 * expected["loss_mask"], rtol=1e-5, atol=0)
    assert_close(losses["loss_dice"], expected["loss_dice"], rtol=1e-5, atol=0)
    assert_close(metrics["unweighted/mask"], expected["loss_mask"].detach(), rtol=1e-5, atol=0)
    assert not metrics["unweighted/dice"].requires_grad
    (ours,) = torch.autograd.grad(losses["loss_mask"] + losses["loss_dice"], every_mask)
    (theirs,) = torch.autograd.grad(3 * expected["loss_mask"] + expected["loss_dice"], every_mask)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_terms_are_the_originals(scale):
    torch.manual_seed(0)
    logits, masks = torch.randn(5, 700) * scale, torch.rand(5, 700) < 0.3
    for ours, theirs in ((sigmoid_focal_loss, original_focal_loss), (dice_loss, original_dice_loss)):
        assert_close(ours(logits, masks).sum() / 2.5, theirs(logits, masks.float(), 2.5), rtol=1e-5, atol=1e-6)


def test_dice_of_perfect_and_empty_masks():
    """By hand: an empty prediction of an empty mask loses nothing, a full one of 9 pixels loses 9 of 10."""
    logits = torch.tensor([[-50.0] * 9, [50.0] * 9, [50.0] * 9])
    masks = torch.tensor([[False] * 9, [False] * 9, [True] * 9])
    assert_close(dice_loss(logits, masks), torch.tensor([0.0, 0.9, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("counts", [(0,), (0, 0)], ids=str)
def test_no_objects_leave_a_path_for_gradients(make_cfg, problem, counts):
    """Edge cases C1 and C3, defect A7: losses of zero that reach whatever the masks are made with."""
    predictions, targets, every_mask = problem(counts)
    losses, _ = SetCriterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))(predictions, targets, predictor(every_mask))
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert torch.equal(every_mask.grad, torch.zeros_like(every_mask))


def test_only_the_matched_pairs_of_the_last_layer_are_predicted(make_cfg, problem):
    predictions, targets, every_mask = problem((3, 0, 9))
    asked = []
    masks = predictor(every_mask)

    def logits(pairs):
        asked.append((pairs.images, pairs.queries))
        return masks.logits(pairs)

    criterion = SetCriterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))
    criterion(predictions, targets, masks._replace(logits=logits))
    [(images, queries)] = asked
    assert images.tolist() == [0] * 3 + [2] * 6
    last = Output(predictions.logits[-1:], predictions.boxes[-1:])
    matches = criterion.matcher(criterion.cost(last, targets), targets.counts)[0]
    assert queries[:3].tolist() == matches[0, :3].tolist()
    assert sorted(queries[3:].tolist()) == list(range(6))


def test_pairs_leave_out_objects_without_a_query():
    matches = torch.tensor([[2, -1, 0], [1, -1, -1], [-1, -1, -1]])
    pairs = matched_pairs(matches, (3, 1, 0), num_queries=2)
    assert pairs.images.tolist() == [0, 0, 1]
    assert pairs.queries.tolist() == [2, 0, 1]
    assert pairs.objects.tolist() == [0, 2, 0]
    assert pairs.counts == (2, 1, 0)


def test_losses_of_masks_are_float32_under_autocast(make_cfg, problem):
    """Edge case C28."""
    predictions, targets, every_mask = problem((3, 1))
    criterion = SetCriterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))
    extreme = (every_mask.detach().sign() * 60).bfloat16()
    expected, _ = criterion(predictions, targets, predictor(extreme.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = criterion(predictions, targets, predictor(extreme))
    for name in ("loss_mask", "loss_dice"):
        assert losses[name].dtype == torch.float32
        assert torch.isfinite(losses[name])
        assert_close(losses[name], expected[name], rtol=1e-6, atol=0)


def test_memory_does_not_grow_with_the_objects(problem, monkeypatch):
    """What the backward pass keeps of a pair is its small mask, not tensors in pixels of the image."""
    _, targets, every_mask = problem((6,))
    size = (240, 300)
    targets = Targets(targets.labels, targets.boxes, (6,), (torch.rand(6, *size) < 0.3,))
    pairs = matched_pairs(torch.arange(6)[None], (6,), QUERIES)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        mask_losses([every_mask[0]], pairs, targets, [size])
    assert not [x.shape for x in kept if x.is_floating_point() and x.numel() >= 240 * 300]
