"""Training with masks against the original code."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from detr_d2.utils.errors import UserError

MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2),
)
FROZEN = ("MODEL.DETR.FROZEN_WEIGHTS", "box.pth")


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [([(64, 97)], [3]), ([(80, 97), (75, 110), (33, 64)], [4, 0, 2]), ([(64, 64), (64, 64)], [9, 1])],
    ids=["one", "padded, one without objects", "more objects than queries"],
)
def test_losses_are_the_originals(
    make_cfg, make_original_segmentation, make_inputs, original_batch, make_original_criterion, sizes, counts
):
    """Also with images without objects."""
    cfg = make_cfg(*MASKS, "MODEL.DETR.MASK.DICE_WEIGHT", 2.0)
    original = make_original_segmentation(cfg)
    model = build_model(cfg)
    model.load_state_dict(original.detr.state_dict(), strict=False)
    for part in ("bbox_attention", "mask_head"):
        getattr(model.detr, part).load_state_dict(getattr(original, part).state_dict())
    inputs = make_inputs(sizes, counts, masks=True)
    samples, targets = original_batch(inputs, cfg)
    for target, x in zip(targets, inputs, strict=True):
        target["masks"] = x["instances"].gt_masks.tensor
    criterion = make_original_criterion(cfg)

    with torch.no_grad():
        losses = model.train()(inputs)
        expected = criterion(original(samples), targets)
    weighted = {name: expected[name] * weight for name, weight in criterion.weight_dict.items()}
    assert losses.keys() == weighted.keys()
    for name, value in weighted.items():
        assert_close(losses[name], value, rtol=1e-5, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("counts", [[0, 0], [0, 3]], ids=str)
@pytest.mark.parametrize("options", [(), FROZEN], ids=["all", "frozen boxes"])
def test_every_parameter_has_a_gradient(make_model, make_inputs, counts, options):
    """Also without any object, as distributed training needs it."""
    model = make_model(*MASKS, *options).train()
    losses = model(make_inputs([(64, 64), (64, 96)], counts, masks=True))
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_frozen_boxes_are_logged_and_only_masks_are_trained(make_model, make_inputs):
    """Frozen boxes have no gradients and no dropout; the total loss is that of masks."""
    model = make_model(*MASKS, *FROZEN, "MODEL.DETR.DROPOUT", 0.5).train()
    inputs = make_inputs([(64, 64)], [3], masks=True)
    with EventStorage(19) as storage:
        first, second = model(inputs), model(inputs)
        assert {"unweighted/ce", "unweighted/giou", "unweighted/mask"} <= storage.latest().keys()
    assert set(first) == {"loss_mask", "loss_dice"}
    assert torch.equal(first["loss_mask"], second["loss_mask"])
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"bbox_attention", "mask_head"}
    assert model.training
    assert model.detr.mask_head.training
    assert not any(x.training for x in model.detr.transformer.modules())


# Frozen modules compute as in inference, where padding makes no difference by default.
AS_ORIGINAL = (*FROZEN, "MODEL.DETR.BATCH_INVARIANT", False)


def test_frozen_and_free_boxes_have_one_mask_loss(make_model, make_inputs):
    inputs = make_inputs([(64, 64), (48, 80)], [3, 1], masks=True)
    free, frozen = (make_model(*MASKS, *options).train()(inputs) for options in ((), AS_ORIGINAL))
    for name, loss in frozen.items():
        assert_close(loss, free[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options", [("MODEL.DETR.BATCH_INVARIANT_TRAINING", True), FROZEN], ids=["all", "frozen boxes"]
)
def test_padding_makes_no_difference_to_invariant_mask_losses(make_model, make_inputs, options):
    """The losses of a batch are those of its images alone, weighted by their numbers of objects."""
    counts = [3, 0, 1]
    inputs = make_inputs([(64, 97), (33, 64), (48, 80)], counts, masks=True)
    model = make_model(*MASKS, *options).train()
    joint = model(inputs)
    alone = [model([x]) for x in inputs]
    for name in ("loss_mask", "loss_dice"):
        mean = sum(n * losses[name] for n, losses in zip(counts, alone, strict=True)) / sum(counts)
        assert_close(joint[name], mean, rtol=1e-4, atol=1e-6)


def test_inputs_without_masks(make_model, make_inputs):
    with pytest.raises(UserError, match=r"image_0.jpg have none.*MODEL.MASK_ON False"):
        make_model(*MASKS).train()(make_inputs([(64, 64)], [1]))


def test_a_box_model_ignores_masks(make_model, make_inputs):
    losses = make_model().train()(make_inputs([(64, 64)], [2], masks=True))
    assert "loss_mask" not in losses
