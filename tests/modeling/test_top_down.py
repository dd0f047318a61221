"""Levels of a backbone that are joined to one."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.engine.optimizer import build_optimizer
from detr_d2.modeling import build_masked_backbone
from detr_d2.utils.errors import UserError

LEVELS = ["res2", "res3", "res4", "res5"]
ALL = ("MODEL.RESNETS.OUT_FEATURES", LEVELS)
JOINED = ("MODEL.DETR.TOP_DOWN.LEVELS", ["res5", "res3", "res4"], "MODEL.DETR.TOP_DOWN.BLOCKS", 1)


def test_levels_are_joined_as_in_a_feature_pyramid(make_cfg):
    """Against the formulas of arXiv 1612.03144 and 1512.03385, written with other operations."""
    backbone = build_masked_backbone(make_cfg(*ALL, *JOINED)).eval()
    assert (backbone.level, backbone.stride, backbone.finer_levels) == ("res3", 8, ["res2"])
    batch = backbone.pad([torch.randn(3, 75, 101)])
    weights = dict(backbone.top_down.named_parameters())

    def normed(x, name):
        x = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1)
        return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    with torch.no_grad():
        levels = {name: x.tensor for name, x in backbone._levels(batch).items()}
        features = backbone(batch)
        joined = torch.zeros(1, 32, 1, 1)
        for name in LEVELS[:0:-1]:
            lateral = F.conv2d(levels[name], weights[f"lateral.{name}.weight"])
            ratio = 2 if name != "res5" else 10**6
            rows, columns = (torch.arange(length) // ratio for length in lateral.shape[2:])
            joined = joined[:, :, rows][..., columns] + lateral
        x = normed(joined, "output").relu()
        expected = (x + normed(normed(x, "blocks.0.conv1").relu(), "blocks.0.conv2")).relu()
    assert_close(features.tensor, expected, atol=1e-4, rtol=1e-4)
    assert_close(features.finer[0].tensor, levels["res2"])
    assert features.tensor.shape == (1, 32, 10, 13)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("names", [["res3", "res4", "res5"], ["res3", "res5"]])
def test_features_do_not_depend_on_the_batch(make_cfg, training, names):
    """Also of sides that are no multiples of the strides: they round up."""
    options = ("MODEL.DETR.TOP_DOWN.LEVELS", names, "MODEL.DETR.BATCH_INVARIANT_TRAINING", True)
    backbone = build_masked_backbone(make_cfg(*ALL, *JOINED, *options))
    backbone.train(training)
    images = [torch.randn(3, *size) for size in ((75, 101), (96, 64), (33, 130))]
    for name, parameter in backbone.top_down.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    together = backbone(backbone.pad(images))
    for i, image in enumerate(images):
        alone = backbone(backbone.pad([image])).tensor
        assert together.valid_sizes[i] == tuple(alone.shape[-2:])
        height, width = alone.shape[-2:]
        assert_close(together.tensor[i : i + 1, :, :height, :width], alone, atol=1e-5, rtol=1e-5)


def test_joined_levels_learn_at_the_rate_of_the_transformer(make_cfg):
    cfg = make_cfg(*ALL, *JOINED)
    model = build_model(cfg)
    names = {p: name for name, p in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    rates = {names[p]: group["lr"] for group in groups for p in group["params"]}
    joined = {rate for name, rate in rates.items() if "top_down" in name}
    assert joined == {1e-4}
    assert rates["detr.backbone.0.backbone.res5.1.conv1.weight"] == pytest.approx(1e-5)


def test_all_weights_learn(make_cfg, make_inputs):
    """So that several processes can train."""
    model = build_model(make_cfg("MODEL.RESNETS.OUT_FEATURES", LEVELS[1:], *JOINED)).train()
    sum(model(make_inputs([(100, 150), (64, 64)], [2, 1])).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    "names", [["res5"], ["res4", "res5", "res7"], ["res5", "res5"], ["res3", "res4"]], ids=lambda names: " ".join(names)
)
def test_wrong_levels(make_cfg, names):
    """Levels coarser than those that are joined would be computed in vain."""
    with pytest.raises(UserError, match=r"TOP_DOWN.LEVELS is .* two or more .*res4 \(stride 16\)"):
        build_masked_backbone(make_cfg(*ALL, "MODEL.DETR.TOP_DOWN.LEVELS", names))
