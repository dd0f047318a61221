"""Detectron2's own backbones under DETR, as docs/BACKBONES.md describes them."""

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch.testing import assert_close


@pytest.fixture
def registered():
    """Return a function that registers a backbone builder for one test."""
    names = []

    def register(builder) -> str:
        BACKBONE_REGISTRY.register(builder)
        names.append(builder.__name__)
        return builder.__name__

    yield register
    for name in names:
        del BACKBONE_REGISTRY._obj_map[name]


def test_last_level_of_fpn(make_cfg, make_inputs):
    """p6 of stride 64, which is every second feature of p5."""
    options = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 16)
    levels = ["res2", "res3", "res4", "res5"]
    cfg = make_cfg(*options, "MODEL.FPN.IN_FEATURES", levels, "MODEL.RESNETS.OUT_FEATURES", levels)
    model = build_model(cfg)
    masked = model.detr.backbone[0]
    assert (masked.level, masked.num_channels) == ("p6", 16)
    with torch.no_grad():
        pyramid = masked.backbone.eval()(torch.rand(1, 3, 128, 192))
    assert pyramid["p6"].shape == (1, 16, 2, 3)
    assert_close(pyramid["p6"], pyramid["p5"][:, :, ::2, ::2])

    inputs = make_inputs([(100, 150), (64, 64)], [2, 1])
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    # The finer levels are not used.
    unused = {name.split(".")[4] for name, x in model.named_parameters() if x.requires_grad and x.grad is None}
    assert unused == {"fpn_lateral2", "fpn_lateral3", "fpn_lateral4", "fpn_output2", "fpn_output3", "fpn_output4"}
    assert len(model.eval()(inputs)[0]["instances"]) == 7


def test_swin(registered, make_cfg, make_inputs):
    pytest.importorskip("timm")  # Detectron2's Swin imports it.
    from detectron2.modeling.backbone.swin import SwinTransformer

    class Swin(SwinTransformer):
        # Detectron2's own property reads an attribute whose name is misspelled; Swin pads by itself.
        size_divisibility = 0

    def build_swin(cfg, input_shape):
        return Swin(
            in_chans=input_shape.channels,
            embed_dim=12,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
            window_size=4,
            out_indices=(3,),
        )

    model = build_model(make_cfg("MODEL.BACKBONE.NAME", registered(build_swin))).eval()
    assert (model.detr.backbone[0].level, model.detr.backbone[0].num_channels) == ("p3", 96)
    assert len(model(make_inputs([(70, 97)], [0]))[0]["instances"]) == 7


def test_vit(registered, make_cfg, make_inputs):
    pytest.importorskip("timm")  # Detectron2's ViT imports it.
    from detectron2.modeling.backbone.vit import ViT

    def build_vit(cfg, input_shape):
        return ViT(img_size=64, pretrain_img_size=64, in_chans=input_shape.channels, embed_dim=16, depth=1, num_heads=2)

    model = build_model(make_cfg("MODEL.BACKBONE.NAME", registered(build_vit))).eval()
    assert model.detr.backbone[0].num_channels == 16
    assert len(model(make_inputs([(64, 96)], [0]))[0]["instances"]) == 7
