"""An image's results don't depend on what it is batched with."""

import copy

import pytest
import torch
from torch.testing import assert_close

from detr_d2.modeling import build_masked_backbone
from detr_d2.structures import PaddedBatch

R50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
FINE_LEVELS = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
MASKS = ("MODEL.MASK_ON", True)
PANOPTIC = (
    *MASKS,
    *("MODEL.DETR.PANOPTIC.ENABLED", True),
    *("MODEL.DETR.PANOPTIC.NUM_THINGS", 3),
    *("MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 0.0),
)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
VARIANTS = {
    "box": (),
    "r50": R50,
    "dc5": (*R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "learned positions": ("MODEL.DETR.POSITION_EMBEDDING", "learned"),
    "smca": SMCA,
    "smca, finer features": (*SMCA, "MODEL.RESNETS.OUT_FEATURES", ["res3"]),
    "multi-scale smca": (*MULTI_SCALE, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    "multi-scale smca, group norm": (
        *(*MULTI_SCALE, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]),
        *("MODEL.RESNETS.NORM", "GN"),
    ),
    "batch norm": ("MODEL.RESNETS.NORM", "BN"),
    "group norm": ("MODEL.RESNETS.NORM", "GN"),
    "masks": MASKS,
    "masks, dc5": (*MASKS, *R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "masks, smca": (*MASKS, *SMCA),
    "masks, group norm": (*MASKS, "MODEL.RESNETS.NORM", "GN"),
    "panoptic": PANOPTIC,
    "masks, multi-scale smca": (*MASKS, *MULTI_SCALE),
}


def image(size, seed=0):
    values = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": values, "height": size[0] + 3, "width": 2 * size[1]}


def random_sizes(seed, count=3):
    sizes = torch.randint(30, 130, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    return [tuple(x) for x in sizes]


def assert_same(batched, alone):
    order = alone.scores.argsort(descending=True)
    assert_close(batched.scores[order], alone.scores[order], atol=1e-4, rtol=0)
    assert_close(batched.pred_boxes.tensor[order], alone.pred_boxes.tensor[order], atol=1e-2, rtol=1e-4)
    assert torch.equal(batched.pred_classes, alone.pred_classes)
    if alone.has("pred_masks"):
        differ = (batched.pred_masks != alone.pred_masks).flatten(1).sum(1)
        assert differ.max() <= 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_results_alone_and_in_a_batch(make_model, options, seed):
    """In batches of any sizes."""
    model = make_model(*options, seed=seed)
    inputs = [image(size, i) for i, size in enumerate(random_sizes(seed))]
    with torch.no_grad():
        batched = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for one, other in zip(batched, alone, strict=True):
        assert_same(one["instances"], other["instances"])
        if "panoptic_seg" in other:
            (ids, infos), (expected_ids, expected_infos) = one["panoptic_seg"], other["panoptic_seg"]
            assert (ids != expected_ids).sum() <= 2
            assert [x["category_id"] for x in infos] == [x["category_id"] for x in expected_infos]


@pytest.mark.parametrize("size", [(31, 97), (32, 64), (33, 33), (1, 5)])
@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_features_alone_and_in_a_batch(make_cfg, size, norm):
    """Compare every level, the mask and the valid sizes, at sizes around the strides."""
    torch.manual_seed(0)
    backbone = build_masked_backbone(make_cfg(*FINE_LEVELS, "MODEL.RESNETS.NORM", norm)).eval()
    small, large = torch.randn(3, *size), torch.randn(3, 70, 101)
    with torch.no_grad():
        padded = backbone.pad([small, large])
        batched = backbone(padded)
        alone = backbone(backbone.pad([small]))
    assert alone.padding_mask is None
    assert padded.valid_sizes[0] == size
    levels = zip(
        ((batched.tensor, batched.valid_sizes), *batched.finer),
        (alone.tensor, *(level.tensor for level in alone.finer)),
        strict=True,
    )
    for (level, valid_sizes), expected in levels:
        height, width = valid_sizes[0]
        assert (height, width) == tuple(expected.shape[-2:])
        assert_close(level[:1, :, :height, :width], expected, atol=1e-4, rtol=1e-4)
    height, width = alone.tensor.shape[-2:]
    assert not batched.padding_mask[0, :height, :width].any()
    assert batched.padding_mask[0].sum() == batched.padding_mask[0].numel() - height * width


def test_the_originals_behavior_can_be_chosen(make_model):
    """Padding leaks into the features; parity with the original is tested elsewhere."""
    model = make_model("MODEL.DETR.BATCH_INVARIANT", False)
    inputs = [image((64, 64)), image((96, 128), seed=1)]
    with torch.no_grad():
        batched, alone = model(inputs)[0]["instances"], model(inputs[:1])[0]["instances"]
    assert (batched.pred_boxes.tensor - alone.pred_boxes.tensor).abs().max() > 1e-2


@pytest.mark.parametrize("invariant", [True, False])
def test_training_has_a_switch_of_its_own(make_cfg, invariant):
    torch.manual_seed(0)
    backbone = build_masked_backbone(
        make_cfg("MODEL.DETR.BATCH_INVARIANT", not invariant, "MODEL.DETR.BATCH_INVARIANT_TRAINING", invariant)
    ).train()
    images = [torch.randn(3, 64, 64), torch.randn(3, 96, 128)]
    batched = backbone(backbone.pad(images)).tensor[:1, :, :2, :2]
    alone = backbone(backbone.pad(images[:1])).tensor
    assert torch.allclose(batched, alone, atol=1e-4) == invariant
    batched.sum().backward()


def test_a_copy_does_not_need_the_model(make_model):
    model = make_model()
    twin = copy.deepcopy(model)
    inputs = [image((64, 64)), image((96, 128), seed=1)]
    with torch.no_grad():
        expected = model(inputs)[0]["instances"]
        del model
        assert_same(twin(inputs)[0]["instances"], expected)


def test_images_of_one_size_are_not_masked(make_model, monkeypatch):
    model = make_model()
    masked = []
    zero_padding = PaddedBatch.zero_padding
    monkeypatch.setattr(PaddedBatch, "zero_padding", lambda *x: masked.append(x) or zero_padding(*x))
    with torch.no_grad():
        model([image((64, 96)), image((64, 96), seed=1)])
        assert not masked
        model([image((64, 96)), image((64, 64), seed=1)])
        assert masked
