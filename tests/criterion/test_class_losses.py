"""Class losses that depend on the overlap, against the formulas of their papers, one logit at a time."""

import math

import pytest
import torch

from detr_d2.criterion import CLASS_LOSSES, Normalizer
from detr_d2.criterion.class_losses import IGNORED


def cross_entropy(p: float, target: float) -> float:
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def varifocal(p: float, q: float | None) -> float:
    return q * cross_entropy(p, q) if q is not None else 0.75 * p**2 * cross_entropy(p, 0)


def aligned(p: float, q: float | None) -> float:
    return cross_entropy(p, p**0.25 * q**0.75) if q is not None else p**2 * cross_entropy(p, 0)


def matchability(p: float, q: float | None) -> float:
    return cross_entropy(p, q**1.5) if q is not None else p**1.5 * cross_entropy(p, 0)


@pytest.mark.parametrize("formula", [varifocal, aligned, matchability])
def test_formula(formula):
    torch.manual_seed(0)
    logits, overlaps = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    classes = torch.randint(6, (2, 3, 4))
    normalizer = Normalizer(torch.tensor(7.0), torch.tensor(0.0))
    losses = CLASS_LOSSES[formula.__name__].loss(logits, classes, torch.ones(6), normalizer, overlaps)
    for layer in range(2):
        expected = 0.0
        for image in range(3):
            for query in range(4):
                for label, p in enumerate(logits[layer, image, query].sigmoid().tolist()):
                    # The last class is no-object, which is never a target.
                    is_target = label == classes[layer, image, query] and label < 5
                    expected += formula(p, overlaps[layer, image, query].item() if is_target else None)
        assert losses[layer].item() == pytest.approx(expected / 7, rel=1e-6)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_ignored_queries_have_no_loss(name):
    torch.manual_seed(0)
    logits, overlaps = torch.randn(1, 1, 4, 6, requires_grad=True), torch.rand(1, 1, 4)
    classes = torch.tensor([[[1, IGNORED, 5, IGNORED]]])
    normalizer = Normalizer(torch.tensor(1.0), torch.tensor(1.0))
    loss = CLASS_LOSSES[name].loss(logits, classes, torch.ones(6), normalizer, overlaps)
    kept = CLASS_LOSSES[name].loss(logits[:, :, ::2], classes[..., ::2], torch.ones(6), normalizer, overlaps[..., ::2])
    torch.testing.assert_close(loss, kept)
    loss.sum().backward()
    assert torch.equal(logits.grad[0, 0, 1::2], torch.zeros(2, 6))


@pytest.mark.parametrize("name", ["varifocal", "aligned", "matchability"])
def test_better_boxes_get_higher_scores(name):
    """The probability at the minimum of the loss grows with the overlap."""
    overlaps = torch.tensor([[[0.3, 0.6, 0.9]]])
    logits = torch.zeros(1, 1, 3, 2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    normalizer = Normalizer(torch.tensor(1.0), torch.tensor(1.0))
    for _ in range(500):
        optimizer.zero_grad()
        classes = torch.zeros(1, 1, 3, dtype=torch.int64)
        CLASS_LOSSES[name].loss(logits, classes, torch.ones(2), normalizer, overlaps).sum().backward()
        optimizer.step()
    low, middle, high = logits[0, 0, :, 0].sigmoid().tolist()
    assert low + 0.1 < middle < high - 0.1


@pytest.mark.parametrize("name", ["varifocal", "aligned", "matchability"])
def test_a_model_is_trained_with_it(make_model, make_inputs, name):
    model = make_model("MODEL.DETR.CLASS_LOSS", name).train()
    losses = model(make_inputs([(64, 64), (64, 96)], [2, 0]))
    sum(losses.values()).backward()
    assert all(math.isfinite(x) for x in losses.values())


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_logits_of_scores(name):
    """Ranking the logits gives the scores back."""
    scores = torch.tensor([[[0.7, 0.1], [0.0, 0.4], [0.02, 0.0]]])
    ranking = CLASS_LOSSES[name].rank(CLASS_LOSSES[name].logits(scores))
    torch.testing.assert_close(
        ranking.scores, scores[0, ranking.queries[0], ranking.classes[0]][None], atol=1e-6, rtol=1e-5
    )
    assert ranking.scores.max() == pytest.approx(0.7)
