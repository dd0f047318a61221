import pytest
import torch
from detectron2.structures import ImageList
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.modeling import build_masked_backbone
from detr_d2.modeling.backbone import padding_mask


@pytest.mark.parametrize("seed", range(20))
def test_padding_mask_is_the_originals(seed):
    """Its own lines: the pixels' mask, sampled with ``nearest`` at the size of the features."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 300, (3, 2), generator=generator).tolist()
    images = ImageList.from_tensors([torch.zeros(3, h, w) for h, w in sizes])
    pixels = torch.ones(3, *images.tensor.shape[-2:], dtype=torch.bool)
    for mask, (h, w) in zip(pixels, sizes, strict=True):
        mask[:h, :w] = False
    size = torch.Size(-(-x // 32) for x in images.tensor.shape[-2:])
    expected = F.interpolate(pixels[None].float(), size=size).to(torch.bool)[0]
    frames = [tuple(images.tensor.shape[-2:])] * 3
    assert torch.equal(padding_mask(images, frames, [tuple(size)] * 3, size), expected)


def test_no_mask_where_nothing_is_padded():
    images = ImageList.from_tensors([torch.zeros(3, 64, 96)] * 2)
    assert padding_mask(images, [(64, 96)] * 2, [(2, 3)] * 2, torch.Size((2, 3))) is None


def test_extents_are_measured_in_features(make_cfg):
    backbone = build_masked_backbone(make_cfg()).eval()
    images = ImageList.from_tensors([torch.zeros(3, 64, 96), torch.zeros(3, 48, 32)])
    with torch.no_grad():
        features = backbone(images)
    assert features.tensor.shape == (2, 512, 2, 3)
    assert_close(features.extents, torch.tensor([[3.0, 2.0], [1.0, 1.5]]))


@pytest.mark.parametrize("options", [(), ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])])
def test_the_coarsest_level_is_taken(make_cfg, options):
    """Also where a YAML file of the original project's wrapper asks for all four levels."""
    backbone = build_masked_backbone(make_cfg(*options))
    assert (backbone.level, backbone.num_channels, backbone.stride) == ("res5", 512, 32)


def test_dc5_dilates_from_the_second_block_on(make_cfg):
    """Defect A4: torchvision's dilations, not Detectron2's."""
    r50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    backbone = build_masked_backbone(make_cfg(*r50, "MODEL.RESNETS.RES5_DILATION", 2))
    assert [block.conv2.dilation for block in backbone.backbone.res5] == [(1, 1), (2, 2), (2, 2)]
    assert backbone.stride == 16
