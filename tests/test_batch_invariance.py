"""Tests that the results of an image do not depend on its batch."""

import copy

import pytest
import torch
from detectron2.structures import ImageList
from torch.testing import assert_close

from detr_d2.modeling import build_masked_backbone

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
VARIANTS = {
    "box": (),
    "r50": R50,
    "dc5": (*R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "learned positions": ("MODEL.DETR.POSITION_EMBEDDING", "learned"),
    "smca": SMCA,
    "smca, finer features": (*SMCA, "MODEL.RESNETS.OUT_FEATURES", ["res3"]),
    "batch norm": ("MODEL.RESNETS.NORM", "BN"),
    "group norm": ("MODEL.RESNETS.NORM", "GN"),
    "masks": MASKS,
    "masks, dc5": (*MASKS, *R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "masks, smca": (*MASKS, *SMCA),
    "masks, group norm": (*MASKS, "MODEL.RESNETS.NORM", "GN"),
    "panoptic": PANOPTIC,
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
    """Same boxes, masks and panoptic results, for images of any sizes."""
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
    """Every level, with the mask and the valid sizes, at sizes around the strides."""
    torch.manual_seed(0)
    backbone = build_masked_backbone(make_cfg(*FINE_LEVELS, "MODEL.RESNETS.NORM", norm)).eval()
    small, large = torch.randn(3, *size), torch.randn(3, 70, 101)
    with torch.no_grad():
        batched = backbone(ImageList.from_tensors([small, large]))
        alone = backbone(ImageList.from_tensors([small]))
    assert alone.padding_mask is None
    assert batched.frames[0] == alone.frames[0] == size
    levels = zip((batched.tensor, *batched.levels), (alone.tensor, *alone.levels), batched.level_frames, strict=True)
    for level, expected, frames in levels:
        height, width = frames[0]
        assert (height, width) == tuple(expected.shape[-2:])
        assert_close(level[:1, :, :height, :width], expected, atol=1e-4, rtol=1e-4)
    height, width = alone.tensor.shape[-2:]
    assert not batched.padding_mask[0, :height, :width].any()
    assert batched.padding_mask[0].sum() == batched.padding_mask[0].numel() - height * width


def test_the_originals_behaviour_can_be_had(make_model):
    """Padding leaks into the features then; parity with the original is tested elsewhere."""
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
    batched = backbone(ImageList.from_tensors(images)).tensor[:1, :, :2, :2]
    alone = backbone(ImageList.from_tensors(images[:1])).tensor
    assert torch.allclose(batched, alone, atol=1e-4) == invariant
    batched.sum().backward()


def test_a_copy_has_a_life_of_its_own(make_model):
    """Hooks of a copied model belong to the copy."""
    model = make_model()
    twin = copy.deepcopy(model)
    inputs = [image((64, 64)), image((96, 128), seed=1)]
    with torch.no_grad():
        expected = model(inputs)[0]["instances"]
        del model
        assert_same(twin(inputs)[0]["instances"], expected)


def test_images_of_one_size_are_not_masked(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(model.detr.backbone[0], "_invariant", None)
    with torch.no_grad():
        model([image((64, 96)), image((64, 96), seed=1)])
