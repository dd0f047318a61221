import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.testing import assert_close

from detr_d2.modeling import build_masked_backbone
from detr_d2.modeling.backbone import MaskedBackbone


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


class OneConvolution(Backbone):
    def __init__(self, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, groups=groups)
        self._out_features = ["res0"]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res0": ShapeSpec(channels=6, stride=1)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"res0": self.conv(images)}


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize(("groups", "exact"), [(3, True), (1, False)])
def test_depthwise_convolutions_train_in_float32_on_a_cpu(groups, exact, invariant):
    backbone = MaskedBackbone(OneConvolution(groups), invariant, invariant)
    for training in (True, False):
        batch = backbone.train(training).pad([torch.randn(3, 16, 16), torch.randn(3, 12, 16)])
        expected = backbone(batch).tensor
        with torch.autocast("cpu", torch.bfloat16):
            features = backbone(batch).tensor
        assert torch.equal(features, expected) == (exact and training)
