"""Training steps: gradient accumulation, bfloat16, and the log of their losses."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from detr_d2.engine import build_optimizer
from detr_d2.engine.step import LossLog, TrainingStep

SIZE = (64, 64)
MASKS = ("MODEL.MASK_ON", True)
TRAINING_QUERIES = (
    *("MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0),
    *("MODEL.DETR.DENSE_WEIGHT", 0.3),
)
INVARIANT = ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True)


@pytest.fixture
def take_step(make_cfg, make_model):
    """Return a function that makes one step and returns the model, its gradients and the logged losses."""

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
def test_accumulated_gradients_are_those_of_the_batch(take_step, make_inputs, counts):
    """However the objects are distributed over the accumulation steps."""
    inputs = make_inputs([SIZE] * 4, counts)
    _, expected, losses = take_step(inputs)
    for steps in (2, 4):
        _, gradients, other_losses = take_step(inputs, accumulation_steps=steps)
        assert other_losses == pytest.approx(losses, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (INVARIANT, [(64, 96), (80, 64), (64, 64), (48, 70)]),
        pytest.param((*MASKS, *INVARIANT), [(64, 96), (80, 64), (64, 64), (48, 70)], marks=pytest.mark.slow),
        (MASKS, [SIZE] * 4),
        ((*MASKS, *TRAINING_QUERIES, *INVARIANT), [(64, 96), (80, 64), (64, 64), (48, 70)]),
    ],
    ids=["boxes, several sizes", "masks, several sizes", "masks", "training queries"],
)
def test_accumulation_is_exact_in_float64(in_float64, take_step, make_inputs, options, sizes):
    """Also with steps of unequal size and unequal numbers of objects."""
    inputs = make_inputs(sizes, [5, 0, 1, 3], masks=True)
    _, expected, losses = take_step(inputs, *options)
    for steps in (2, 3):
        _, gradients, other_losses = take_step(inputs, *options, accumulation_steps=steps)
        assert other_losses == pytest.approx(losses, rel=1e-8)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert gradient.dtype == torch.float64
            # Some gradients are zero up to rounding.
            scale = expected[name].abs().max().clamp(min=1e-3)
            assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-8, msg=name)


def test_bfloat16(take_step, make_inputs, monkeypatch):
    """Losses and gradients are near those of float32; weights and gradients are float32."""
    inputs = make_inputs([SIZE, (48, 64)], [3, 2])
    _, expected, losses = take_step(inputs)
    model, gradients, rounded = take_step(inputs, dtype=torch.bfloat16)
    assert rounded["total_loss"] == pytest.approx(losses["total_loss"], rel=0.03)
    assert rounded["total_loss"] != losses["total_loss"]
    assert all(x.dtype == torch.float32 for x in (*gradients.values(), *model.parameters()))
    a, b = (torch.cat([x[name].flatten() for name in expected]) for x in (expected, gradients))
    assert torch.cosine_similarity(a, b, dim=0) > 0.95


def test_without_scaled_gradients_there_is_no_scaler_to_save(make_cfg, make_model):
    """Float32 and bfloat16 need none; a run that changes the precision can still be resumed."""
    step = TrainingStep(model := make_model(), [[]], build_optimizer(make_cfg(), model), dtype=torch.bfloat16)
    state = step.state_dict()
    assert "grad_scaler" not in state
    step.load_state_dict({**state, "grad_scaler": {"scale": 2.0}})
    assert step.state_dict().keys() == state.keys()


def make_losses(iteration: int) -> dict[str, torch.Tensor]:
    """Return two losses, in odd iterations three."""
    extra = {"loss_mask": torch.tensor(0.5)} if iteration % 2 else {}
    return {"loss_ce": torch.tensor(1.0 + iteration), "loss_bbox": torch.tensor(2.0), **extra}


def test_every_step_is_logged_with_its_iteration():
    with EventStorage(4) as storage:
        log = LossLog(period=4)
        for iteration in range(4, 7):
            log.add(iteration, make_losses(iteration), data_time=0.25)
        assert not storage.histories()
        log.add(7, make_losses(7), data_time=0.5)
        assert storage.history("loss_ce").values() == [(5.0, 4), (6.0, 5), (7.0, 6), (8.0, 7)]
        assert storage.history("loss_mask").values() == [(0.5, 5), (0.5, 7)]
        assert storage.history("total_loss").values() == [(7.0, 4), (8.5, 5), (9.0, 6), (10.5, 7)]
        assert storage.history("data_time").values() == [(0.25, 4), (0.25, 5), (0.25, 6), (0.5, 7)]
        log.write()
        assert len(storage.history("loss_ce").values()) == 4


def test_losses_are_copied_to_the_host_at_once(monkeypatch):
    """Whatever their number."""
    reads = []
    read = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: reads.append(x.numel()) or read(x))
    with EventStorage():
        log = LossLog(period=3)
        for iteration in range(3):
            log.add(iteration, make_losses(iteration), data_time=0.0)
    # Afterwards Detectron2 reads numbers that are on the host already.
    assert reads == [7, *[1] * 7]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    with EventStorage() as storage:
        log = LossLog(period=4)
        log.add(0, make_losses(0), data_time=0.0)
        assert log.first_bad_iteration() is None
        log.add(1, {**make_losses(1), "loss_bbox": torch.tensor(value)}, data_time=0.0)
        log.add(2, {**make_losses(2), "loss_bbox": torch.tensor(value)}, data_time=0.0)
        assert log.first_bad_iteration() == 1
        with pytest.raises(FloatingPointError, match=r"infinite or NaN at iteration=1!\s.*'loss_bbox': \S*(nan|inf)"):
            log.write()
        assert log.first_bad_iteration() is None
        assert storage.history("loss_ce").values() == [(1.0, 0)]
