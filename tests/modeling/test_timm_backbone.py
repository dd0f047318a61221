import argparse
import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch.testing import assert_close

from detr_d2.modeling import timm_backbone
from detr_d2.utils.errors import UserError

timm = pytest.importorskip("timm")

SMALL = "test_resnet"
BIT = "resnetv2_50x1_bit"


@pytest.fixture
def make_timm_cfg(make_cfg):
    def make(name: str = SMALL, *options, freeze_at: int = 2):
        backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", freeze_at)
        return make_cfg(*backbone, "MODEL.TIMM.NAME", name, *options)

    return make


@pytest.fixture
def save(tmp_path):
    """Return a function that saves the weights of a whole timm model, and returns the model and the file."""

    def make(name: str) -> tuple[torch.nn.Module, str]:
        torch.manual_seed(1)
        model = timm.create_model(name, pretrained=False).eval()
        file = tmp_path / f"{name}.pth"
        torch.save(model.state_dict(), file)
        return model, str(file)

    return make


@torch.no_grad()
def assert_same_features(backbone, model, size):
    image = torch.randn(2, 3, *size)
    levels = backbone.eval()(image)
    # The model's own method, without the feature extractor that the backbone uses.
    expected = model.forward_intermediates(image, intermediates_only=True)
    shapes = backbone.output_shape()
    assert list(levels) == list(shapes)
    for name, features in levels.items():
        reference = next(x for x in expected if size[0] // x.shape[-2] == shapes[name].stride)
        assert_close(features, reference, atol=1e-5, rtol=1e-5)
        assert features.shape[1] == shapes[name].channels


@pytest.mark.skipif(not hasattr(torch.serialization, "get_safe_globals"), reason="an older PyTorch has no list")
def test_original_checkpoints_stay_readable(make_timm_cfg, save):
    """After timm has read a file, PyTorch still allows what the original's checkpoints hold."""
    build_backbone(make_timm_cfg(SMALL, "MODEL.TIMM.WEIGHTS", save(SMALL)[1]))
    assert argparse.Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_blocks_after_the_last_level_are_removed(make_timm_cfg, name):
    """Distributed training waits for a gradient of every parameter."""
    options = ("MODEL.TIMM.OUT_INDICES", "(2,)", "MODEL.TIMM.FROZEN_BN", False)
    backbone = build_backbone(make_timm_cfg(name, *options, freeze_at=0))
    (features,) = backbone(torch.randn(2, 3, 64, 64)).values()
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_features_are_timms(make_timm_cfg, save):
    """Load a file of weights, freeze batch norms at its statistics, and compare features with timm's."""
    model, file = save(SMALL)
    options = ("MODEL.TIMM.WEIGHTS", file, "MODEL.TIMM.OUT_INDICES", "(1, 2, 3, 4)")
    backbone = build_backbone(make_timm_cfg(SMALL, *options))
    assert_same_features(backbone, model, (64, 96))
    strides = {name: x.stride for name, x in backbone.output_shape().items()}
    assert strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def test_features_of_bit(repository, make_timm_cfg, save):
    model, file = save(BIT)
    backbone = build_backbone(make_timm_cfg(BIT, "MODEL.TIMM.WEIGHTS", file))
    assert_same_features(backbone, model, (64, 64))
    assert backbone.output_shape()["res5"].channels == 2048


def test_bit_from_the_file_of_its_authors(make_timm_cfg, save, tmp_path):
    """BiT-S is published as .npz, with TensorFlow's names and layout."""
    model, _ = save(BIT)
    arrays = {}

    def put(name, tensor):
        tensor = tensor.detach()
        arrays[f"resnet/{name}"] = (tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor).numpy()

    def put_norm(name, norm):
        put(f"{name}/gamma", norm.weight)
        put(f"{name}/beta", norm.bias)

    put("root_block/standardized_conv2d/kernel", model.stem.conv.weight)
    put_norm("group_norm", model.norm)
    put("head/conv2d/kernel", model.head.fc.weight)
    put("head/conv2d/bias", model.head.fc.bias)
    for i, stage in enumerate(model.stages, start=1):
        for j, block in enumerate(stage.blocks, start=1):
            for letter, conv, norm in zip("abc", ("conv1", "conv2", "conv3"), ("norm1", "norm2", "norm3"), strict=True):
                unit = f"block{i}/unit{j:02d}/{letter}"
                put(f"{unit}/standardized_conv2d/kernel", getattr(block, conv).weight)
                put_norm(f"{unit}/group_norm", getattr(block, norm))
            if block.downsample is not None:
                put(f"block{i}/unit{j:02d}/a/proj/standardized_conv2d/kernel", block.downsample.conv.weight)
    np.savez(tmp_path / "BiT-S-R50x1.npz", **arrays)

    backbone = build_backbone(make_timm_cfg(BIT, "MODEL.TIMM.WEIGHTS", str(tmp_path / "BiT-S-R50x1.npz")))
    assert_same_features(backbone, model, (64, 64))


def test_bit_config_has_bits_statistics(repository):
    from detr_d2.config.loading import load_config

    cfg = load_config(str(repository / "configs" / "detr_256_6_6_bit_r50x1.yaml"), [])
    expected = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    assert pytest.approx([255 * x for x in expected.mean]) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx([255 * x for x in expected.std]) == cfg.MODEL.PIXEL_STD


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm(make_timm_cfg, frozen):
    backbone = build_backbone(make_timm_cfg(SMALL, "MODEL.TIMM.FROZEN_BN", frozen, freeze_at=0)).train()
    before = {name: x.clone() for name, x in backbone.state_dict().items() if "running" in name}
    backbone(torch.rand(2, 3, 64, 64))
    after = backbone.state_dict()
    assert before
    assert all(torch.equal(x, after[name]) for name, x in before.items()) == frozen
    norm_parameters = [name for name, _ in backbone.named_parameters() if "bn" in name]
    assert bool(norm_parameters) != frozen


@pytest.mark.parametrize(
    ("name", "freeze_at", "last_frozen", "first_free"),
    [
        (SMALL, 0, None, "conv1."),
        (SMALL, 1, "conv1.", "layer1."),
        (SMALL, 2, "layer1.", "layer2."),
        ("test_convnext", 2, "stages_0.", "stages_1."),
        ("test_efficientnet", 3, "blocks.2.", "blocks.3."),
    ],
)
def test_freeze_at(make_timm_cfg, name, freeze_at, last_frozen, first_free):
    body = build_backbone(make_timm_cfg(name, freeze_at=freeze_at)).body
    frozen = [name for name, x in body.named_parameters() if not x.requires_grad]
    free = [name for name, x in body.named_parameters() if x.requires_grad]
    assert free[0].startswith(first_free)
    assert not any(name.startswith(first_free) for name in frozen)
    assert frozen[-1].startswith(last_frozen) if last_frozen else not frozen


def test_freezing_goes_beyond_the_levels_that_are_used(make_timm_cfg):
    """Blocks after the last level that is used are removed."""
    backbone = build_backbone(make_timm_cfg("test_efficientnet", "MODEL.TIMM.OUT_INDICES", (2,), freeze_at=5))
    assert not [name for name, x in backbone.named_parameters() if x.requires_grad]


def test_errors_show_no_weights(make_timm_cfg, save):
    options = ("MODEL.TIMM.WEIGHTS", save(SMALL)[1], "MODEL.TIMM.OUT_INDICES", (99,))
    with pytest.raises(UserError, match=r"timm can't build a backbone .*out_indices=\(99,\)") as error:
        build_backbone(make_timm_cfg(SMALL, *options))
    assert "overlay" not in str(error.value)


def test_model_trains_and_predicts(make_timm_cfg, make_inputs):
    model = build_model(make_timm_cfg(SMALL))
    inputs = make_inputs([(64, 96), (70, 65)], [2, 0])
    sum(model.train()(inputs).values()).backward()
    missing = [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None]
    assert not missing
    assert len(model.eval()(inputs)[1]["instances"]) == 7


def test_transformers_pad_to_their_patches(make_cfg, make_inputs, tmp_path):
    """A Swin returns channels last and requires multiples of its patches; MODEL.TIMM.ARGS has its arguments."""
    (tmp_path / "swin.yaml").write_text("""
MODEL:
  BACKBONE: {NAME: build_timm_backbone, FREEZE_AT: 0}
  TIMM:
    NAME: swin_tiny_patch4_window7_224
    ARGS: {strict_img_size: False, embed_dim: 12, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}
""")
    cfg = make_cfg()
    cfg.merge_from_file(str(tmp_path / "swin.yaml"))
    model = build_model(cfg).eval()
    backbone = model.detr.backbone[0]
    assert backbone.num_channels == 96
    image = torch.zeros(1, 3, 72, 100)
    assert backbone.backbone(image)["res5"].shape == (1, 96, 3, 4)
    assert len(model(make_inputs([(70, 97)], [0]))[0]["instances"]) == 7


def test_levels_of_equal_stride_are_numbered():
    arguments = {"dynamic_img_size": True, "dynamic_img_pad": True}
    backbone = timm_backbone.TimmBackbone(name="test_vit", out_indices=(2, -1), arguments=arguments)
    assert list(backbone.output_shape()) == ["level2", "level5"]
    assert backbone(torch.rand(1, 3, 70, 97))["level5"].shape == (1, 64, 5, 7)
    assert backbone.size_divisibility == 0


def test_weights_of_the_whole_model_replace_those_of_the_backbone(make_timm_cfg, monkeypatch):
    """With MODEL.WEIGHTS set nothing is downloaded that the checkpoint replaces."""
    flags = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **k: flags.append(pretrained) or create(*a, **k))
    for weights in ("", "model.pth"):
        build_backbone(make_timm_cfg(SMALL, "MODEL.TIMM.PRETRAINED", True, "MODEL.WEIGHTS", weights))
    assert flags == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.TIMM.NAME", ""), "MODEL.TIMM.NAME"),
        (("MODEL.TIMM.NAME", "test_resnets"), "Did you mean test_resnet"),
        (("MODEL.TIMM.WEIGHTS", "missing.pth"), r"MODEL\.TIMM\.WEIGHTS missing\.pth does not exist"),
        (("MODEL.TIMM.OUT_INDICES", "(9,)"), "OUT_INDICES"),
        (("MODEL.TIMM.NAME", "test_vit"), r"MODEL\.BACKBONE\.FREEZE_AT is 2.*Set FREEZE_AT 0"),
    ],
)
def test_mistakes(make_timm_cfg, options, message):
    with pytest.raises(UserError, match=message):
        build_backbone(make_timm_cfg(SMALL, *options))


def test_weights_of_another_model(make_timm_cfg, save):
    """Timm itself would load matching weights, here none, without an error."""
    _, file = save("test_convnext")
    with pytest.raises(UserError, match=r"MODEL\.TIMM\.WEIGHTS .* lacks 15 of 15 weights of MODEL\.TIMM\.NAME"):
        build_backbone(make_timm_cfg(SMALL, "MODEL.TIMM.WEIGHTS", file))


def test_log_counts_frozen_parameters(make_timm_cfg, caplog):
    with caplog.at_level(logging.INFO, logger=timm_backbone.__name__):
        build_backbone(make_timm_cfg(SMALL))
    assert "FREEZE_AT 2: 5 of" in caplog.text
