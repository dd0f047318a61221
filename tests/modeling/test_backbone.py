import pytest
import torch
from torch.testing import assert_close

from detr_d2.modeling import build_masked_backbone


def test_image_sizes_are_measured_in_features(make_cfg):
    backbone = build_masked_backbone(make_cfg()).eval()
    with torch.no_grad():
        features = backbone(backbone.pad([torch.zeros(3, 64, 96), torch.zeros(3, 48, 32)]))
    assert features.tensor.shape == (2, 512, 2, 3)
    assert_close(features.image_sizes, torch.tensor([[3.0, 2.0], [1.0, 1.5]]))


@pytest.mark.parametrize("options", [(), ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])])
def test_the_coarsest_level_is_taken(make_cfg, options):
    """Also where a YAML file of the original project's wrapper sets all four levels."""
    backbone = build_masked_backbone(make_cfg(*options))
    assert (backbone.level, backbone.num_channels, backbone.stride) == ("res5", 512, 32)


def test_dc5_dilates_from_the_second_block_on(make_cfg):
    """The dilations are torchvision's, not Detectron2's."""
    r50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    backbone = build_masked_backbone(make_cfg(*r50, "MODEL.RESNETS.RES5_DILATION", 2))
    assert [block.conv2.dilation for block in backbone.backbone.res5] == [(1, 1), (2, 2), (2, 2)]
    assert backbone.stride == 16
