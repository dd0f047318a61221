"""Steps in parts and in bfloat16."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from detr_d2.engine import build_optimizer
from detr_d2.engine.step import TrainingStep

SIZE = (64, 64)
MASKS = ("MODEL.MASK_ON", True)
INVARIANT = ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True)


@pytest.fixture
def take_step(make_cfg, make_model):
    """A function that makes one step and returns the model, its gradients and the logged losses."""

    def take(inputs: list[dict], *options, **arguments):
        options = ("MODEL.DETR.DROPOUT", 0.0, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e6, *options)
        model = make_model(*options).train()
        step = TrainingStep(model, [inputs], build_optimizer(make_cfg(*options), model), **arguments)
        step.iter = 0
        with EventStorage() as storage:
            step.run_step()
            logged = storage.latest()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return model, gradients, {name: value for name, (value, _) in logged.items() if "loss" in name}

    return take


@pytest.mark.parametrize("counts", [[5, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]])
def test_parts_add_up_to_the_batch(take_step, make_inputs, counts):
    """However the objects are spread over the parts: losses and gradients of one batch."""
    inputs = make_inputs([SIZE] * 4, counts)
    _, expected, losses = take_step(inputs)
    for parts in (2, 4):
        _, gradients, other_losses = take_step(inputs, parts=parts)
        assert other_losses == pytest.approx(losses, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (INVARIANT, [(64, 96), (80, 64), (64, 64), (48, 70)]),
        ((*MASKS, *INVARIANT), [(64, 96), (80, 64), (64, 64), (48, 70)]),
        (MASKS, [SIZE] * 4),
    ],
    ids=["boxes, several sizes", "masks, several sizes", "masks"],
)
def test_parts_are_the_batch_to_the_last_digits(in_float64, take_step, make_inputs, options, sizes):
    """With parts of unequal size, too, and of unequal numbers of objects."""
    inputs = make_inputs(sizes, [5, 0, 1, 3], masks=True)
    _, expected, losses = take_step(inputs, *options)
    for parts in (2, 3):
        _, gradients, other_losses = take_step(inputs, *options, parts=parts)
        assert other_losses == pytest.approx(losses, rel=1e-8)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert gradient.dtype == torch.float64
            # Some gradients are zero but for rounding.
            scale = expected[name].abs().max().clamp(min=1e-3)
            assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-8, msg=name)


def test_bfloat16(take_step, make_inputs, monkeypatch):
    """The network computes in it; weights, gradients and losses are float32, and near those of float32."""
    inputs = make_inputs([SIZE, (48, 64)], [3, 2])
    _, expected, losses = take_step(inputs)
    model, gradients, rounded = take_step(inputs, dtype=torch.bfloat16)
    assert rounded["total_loss"] == pytest.approx(losses["total_loss"], rel=0.03)
    assert rounded["total_loss"] != losses["total_loss"]
    assert all(x.dtype == torch.float32 for x in (*gradients.values(), *model.parameters()))
    a, b = (torch.cat([x[name].flatten() for name in expected]) for x in (expected, gradients))
    assert torch.cosine_similarity(a, b, dim=0) > 0.95
