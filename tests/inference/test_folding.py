"""Folded batch norms, against the same layers one after the other."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.testing import assert_close

from detr_d2.inference.optimization import fold_batch_norms
from detr_d2.modeling import build_masked_backbone

NORMS = {
    "frozen": lambda: FrozenBatchNorm2d(6),
    "batch": lambda: nn.BatchNorm2d(6),
    "batch, eps": lambda: nn.BatchNorm2d(6, eps=0.1),
    "batch, no scale": lambda: nn.BatchNorm2d(6, affine=False),
    "sync": lambda: nn.SyncBatchNorm(6),
}


@torch.no_grad()
def drawn(norm):
    for name, x in (*norm.named_parameters(), *norm.named_buffers()):
        if x.is_floating_point():
            x.uniform_(0.5, 2) if name == "running_var" else x.normal_()
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_convolution_and_norm_as_one(norm, bias):
    torch.manual_seed(0)
    convolution = Conv2d(4, 6, 3, padding=1, groups=2, bias=bias, norm=drawn(norm()), activation=torch.relu)
    x = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        plain = nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1, groups=2)
        statistics = convolution.norm.running_mean, convolution.norm.running_var
        affine = convolution.norm.weight, convolution.norm.bias
        expected = nn.functional.batch_norm(plain, *statistics, *affine, eps=convolution.norm.eps).relu()
        assert fold_batch_norms(nn.Sequential(convolution)) == 1
        assert convolution.norm is None
        assert_close(convolution(x), expected, atol=1e-5, rtol=1e-5)


def test_norms_of_the_image_itself_stay():
    for norm in (nn.GroupNorm(2, 6), nn.BatchNorm2d(6, track_running_stats=False)):
        convolution = Conv2d(4, 6, 1, norm=copy.deepcopy(norm))
        assert fold_batch_norms(convolution) == 0
        assert type(convolution.norm) is type(norm)


@pytest.mark.parametrize(("norm", "count"), [("FrozenBN", 20), ("BN", 20), ("GN", 0)])
def test_every_one_of_a_resnet(make_cfg, norm, count):
    backbone = build_masked_backbone(make_cfg("MODEL.RESNETS.NORM", norm)).eval()
    assert fold_batch_norms(backbone) == count
