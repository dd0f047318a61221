import pytest
import torch
from detr.models.segmentation import dice_loss as original_dice_loss
from detr.models.segmentation import sigmoid_focal_loss as original_focal_loss
from torch.testing import assert_close

from detr_d2.criterion import MatchedMasks, SetCriterion, matched_pairs
from detr_d2.criterion import mask_losses as module
from detr_d2.criterion.class_losses import sigmoid_focal_loss
from detr_d2.criterion.mask_losses import dice_loss, mask_losses
from detr_d2.structures import Output, Targets

CLASSES, QUERIES = 4, 6
SIZE = (24, 40)
IMAGE_SIZES = [(24, 30), (17, 40), (20, 20)]


@pytest.fixture
def problem():
    """Return a function that makes predictions, targets and the mask logits (B, Q, h, w) of every query."""

    def make(counts, layers=2, seed=0):
        torch.manual_seed(seed)
        batch, width = len(counts), max(counts)
        logits = torch.randn(layers, batch, QUERIES, CLASSES + 1)
        boxes = torch.rand(layers, batch, QUERIES, 4) * 0.4 + 0.1
        sizes = IMAGE_SIZES[:batch]
        masks = tuple(torch.rand(n, *size) < 0.3 for n, size in zip(counts, sizes, strict=True))
        labels = torch.randint(CLASSES, (batch, width))
        targets = Targets(labels, torch.rand(batch, width, 4) * 0.4 + 0.1, counts, masks)
        all_masks = (torch.randn(batch, QUERIES, 6, 10) * 3).requires_grad_()
        return Output(logits, boxes), targets, all_masks

    return make


@pytest.fixture
def criterion(make_cfg):
    return SetCriterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))


def compute_losses(criterion, output, targets, all_masks, size=SIZE):
    """Match, and compare the masks of the matched queries; without pairs those of one query, as the model does."""
    matches = criterion.match(output, targets)
    pairs = matched_pairs(matches[-1], targets.counts, QUERIES)
    queries = pairs.queries if pairs.total else (torch.zeros(1, dtype=torch.int64), *pairs.queries[1:])
    logits = [masks[chosen] for masks, chosen in zip(all_masks, queries, strict=True)]
    return criterion.losses(output, targets, matches, MatchedMasks(pairs, logits, [size] * len(logits)))


def original_losses(make_cfg, make_original_criterion, output, targets, all_masks):
    criterion = make_original_criterion(make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES))
    criterion.losses = ["masks"]
    outputs = {"pred_logits": output.logits[-1], "pred_boxes": output.boxes[-1], "pred_masks": all_masks}
    rows = zip(targets.labels, targets.boxes, targets.masks, strict=True)
    rows = [{"labels": a[: len(m)], "boxes": b[: len(m)], "masks": m} for a, b, m in rows]
    return criterion(outputs, rows)


@pytest.mark.parametrize("counts", [(3,), (3, 1), (6, 0, 2), (0, 5, 6), (9, 2, 0)], ids=str)
@pytest.mark.parametrize("chunk", [2, 16])
def test_values_and_gradients_are_the_originals(make_cfg, make_original_criterion, problem, monkeypatch, counts, chunk):
    """In padded batches, with images without objects, and with more objects than queries."""
    monkeypatch.setattr(module, "_CHUNK", chunk)
    output, targets, all_masks = problem(counts)
    padded = tuple(max(size[axis] for size in IMAGE_SIZES[: len(counts)]) for axis in (0, 1))
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", CLASSES, "MODEL.DETR.MASK.FOCAL_WEIGHT", 3.0)
    losses, metrics = compute_losses(SetCriterion(cfg), output, targets, all_masks, padded)
    expected = original_losses(make_cfg, make_original_criterion, output, targets, all_masks)
    assert_close(losses["loss_mask"], 3 * expected["loss_mask"], rtol=1e-5, atol=0)
    assert_close(losses["loss_dice"], expected["loss_dice"], rtol=1e-5, atol=0)
    assert_close(metrics["unweighted/mask"], expected["loss_mask"].detach(), rtol=1e-5, atol=0)
    assert not metrics["unweighted/dice"].requires_grad
    (gradient,) = torch.autograd.grad(losses["loss_mask"] + losses["loss_dice"], all_masks)
    (original_gradient,) = torch.autograd.grad(3 * expected["loss_mask"] + expected["loss_dice"], all_masks)
    assert_close(gradient, original_gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_terms_are_the_originals(scale):
    torch.manual_seed(0)
    logits, masks = torch.randn(5, 700) * scale, torch.rand(5, 700) < 0.3
    focal = sigmoid_focal_loss(logits, masks).mean(1)
    assert_close(focal.sum() / 2.5, original_focal_loss(logits, masks.float(), 2.5), rtol=1e-5, atol=1e-6)
    dice = dice_loss(logits, masks)
    assert_close(dice.sum() / 2.5, original_dice_loss(logits, masks.float(), 2.5), rtol=1e-5, atol=1e-6)


def test_dice_of_perfect_and_empty_masks():
    """An empty prediction of an empty mask loses nothing, a full one of 9 pixels loses 9 of 10."""
    logits = torch.tensor([[-50.0] * 9, [50.0] * 9, [50.0] * 9])
    masks = torch.tensor([[False] * 9, [False] * 9, [True] * 9])
    assert_close(dice_loss(logits, masks), torch.tensor([0.0, 0.9, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("counts", [(0,), (0, 0)], ids=str)
def test_without_objects_losses_are_zero_and_have_gradients(criterion, problem, counts):
    output, targets, all_masks = problem(counts)
    losses, _ = compute_losses(criterion, output, targets, all_masks)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert torch.equal(all_masks.grad, torch.zeros_like(all_masks))


def test_pairs_are_those_of_the_matches(criterion, problem):
    """With more objects than queries every query is matched."""
    output, targets, _ = problem((3, 0, 9))
    last = criterion.match(output, targets)[-1]
    alone = criterion.match(Output(output.logits[-1:], output.boxes[-1:]), targets)[0]
    assert torch.equal(last, alone)
    queries, objects = matched_pairs(last, targets.counts, QUERIES)
    assert [len(x) for x in queries] == [len(x) for x in objects] == [3, 0, 6]
    assert queries[0].tolist() == last[0, :3].tolist()
    assert objects[0].tolist() == [0, 1, 2]
    assert sorted(queries[2].tolist()) == list(range(6))
    assert torch.equal(last[2, objects[2]], queries[2])


def test_pairs_leave_out_objects_without_a_query():
    matches = torch.tensor([[2, -1, 0], [1, -1, -1], [-1, -1, -1]])
    pairs = matched_pairs(matches, (3, 1, 0), num_queries=2)
    assert [x.tolist() for x in pairs.queries] == [[2, 0], [1], []]
    assert [x.tolist() for x in pairs.objects] == [[0, 2], [0], []]
    assert pairs.total == 3


def test_losses_of_masks_are_float32_under_autocast(criterion, problem):
    output, targets, all_masks = problem((3, 1))
    extreme = (all_masks.detach().sign() * 60).bfloat16()
    expected, _ = compute_losses(criterion, output, targets, extreme.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = compute_losses(criterion, output, targets, extreme)
    for name in ("loss_mask", "loss_dice"):
        assert losses[name].dtype == torch.float32
        assert torch.isfinite(losses[name])
        assert_close(losses[name], expected[name], rtol=1e-6, atol=0)


def test_memory_does_not_grow_with_the_objects(problem):
    """The backward pass keeps the small mask of a pair, and no float tensor in pixels of the image."""
    _, targets, all_masks = problem((6,))
    size = (240, 300)
    targets = Targets(targets.labels, targets.boxes, (6,), (torch.rand(6, *size) < 0.3,))
    pairs = matched_pairs(torch.arange(6)[None], (6,), QUERIES)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        mask_losses(MatchedMasks(pairs, [all_masks[0]], [size]), targets)
    assert kept
    assert not [x.shape for x in kept if x.is_floating_point() and x.numel() >= 240 * 300]
