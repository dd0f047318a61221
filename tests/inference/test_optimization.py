"""The optimized model against the model itself and against the original, and folded batch norms."""

import copy
import logging

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close

from detr_d2.inference import optimization, optimize_for_inference
from detr_d2.inference.optimization import fold_batch_norms
from detr_d2.modeling import build_masked_backbone, record_attention
from detr_d2.utils.errors import UserError

R50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
)
MASKS = ("MODEL.MASK_ON", True)
VARIANTS = {
    "box": (),
    "dc5": (*R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "batch norm": ("MODEL.RESNETS.NORM", "BN"),
    "group norm": ("MODEL.RESNETS.NORM", "GN"),
    "pre-norm, learned positions": ("MODEL.DETR.PRE_NORM", True, "MODEL.DETR.POSITION_EMBEDDING", "learned"),
    "smca": SMCA,
    "multi-scale smca": MULTI_SCALE,
    "smca, product": (*SMCA, "MODEL.DETR.SMCA.DYNAMIC_SCALE", "type4"),
    "panoptic": (
        *MASKS,
        *("MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.PANOPTIC.NUM_THINGS", 3),
        *("MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 0.0),
    ),
}
SIZES = [(64, 96), (101, 60), (33, 128)]


def detections(model, inputs):
    """Return scores and relative boxes of every image, ordered by object query and class, and the results."""
    with torch.no_grad():
        results = model(inputs)
    found = []
    for result, x in zip(results, inputs, strict=True):
        instances = result["instances"]
        height, width = x["image"].shape[-2:]
        order = (instances.queries * 1000 + instances.pred_classes).argsort()
        scale = torch.tensor([width, height, width, height])
        found.append((instances.scores[order], instances.pred_boxes.tensor[order] / scale))
    return found, results


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_same_results_in_float32(make_model, make_inputs, options):
    """Alone and in padded batches; the model itself does not change."""
    model = make_model(*options)
    inputs = make_inputs(SIZES, [0] * len(SIZES))
    expected, expected_results = detections(model, inputs)
    state = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    for batch in (slice(None), *(slice(i, i + 1) for i in range(len(inputs)))):
        found, results = detections(optimized, inputs[batch])
        for (scores, boxes), (expected_scores, expected_boxes) in zip(found, expected[batch], strict=True):
            assert_close(scores, expected_scores, atol=1e-4, rtol=0)
            assert_close(boxes, expected_boxes, atol=1e-4, rtol=0)
        for one, other in zip(results, expected_results[batch], strict=True):
            if "panoptic_seg" in other:
                assert (one["instances"].pred_masks != other["instances"].pred_masks).flatten(1).sum(1).max() <= 2
                assert (one["panoptic_seg"][0] != other["panoptic_seg"][0]).sum() <= 2
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    again, _ = detections(model, inputs)
    assert_close(again, expected, atol=0, rtol=0)


@pytest.mark.parametrize("options", [VARIANTS["box"], VARIANTS["dc5"]], ids=["r18", "dc5"])
def test_same_as_the_original(make_cfg, make_original, make_inputs, original_batch, options):
    cfg = make_cfg(*options)
    original = make_original(cfg)
    model = build_model(cfg).eval()
    model.load_state_dict(original.state_dict())
    optimized = optimize_for_inference(model)
    inputs = make_inputs([(96, 128), (96, 128)], [0, 0])
    with torch.no_grad():
        expected = original(original_batch(inputs, cfg)[0])
        logits, boxes, _ = optimized.detr(optimized.preprocess_image(inputs), all_layers=False)
    assert_close(logits[-1], expected["pred_logits"], atol=1e-4, rtol=0)
    assert_close(boxes[-1], expected["pred_boxes"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["box", "smca", "smca, product", "multi-scale smca", "panoptic"])
def test_half_precision_is_close(make_model, make_inputs, monkeypatch, name):
    monkeypatch.setattr(optimization, "_is_fast", lambda *_: True)
    model = make_model(*VARIANTS[name], "MODEL.DETR.CLASS_LOSS", "softmax")
    inputs = make_inputs(SIZES, [0] * len(SIZES))
    expected, _ = detections(model, inputs)
    optimized = optimize_for_inference(model, precision="bfloat16")
    found, _ = detections(optimized, inputs)
    for (scores, boxes), (expected_scores, expected_boxes) in zip(found, expected, strict=True):
        assert scores.dtype == boxes.dtype == torch.float32
        assert not torch.equal(scores, expected_scores)
        assert_close(scores, expected_scores, atol=0.02, rtol=0)
        assert_close(boxes, expected_boxes, atol=0.03, rtol=0)


@pytest.mark.parametrize(("name", "predicted"), [("smca", ()), ("multi-scale smca", ("level_share",))])
def test_float32_modules(make_model, monkeypatch, name, predicted):
    """The heads, and the layers of SMCA that predict where to attend, keep type and values."""
    monkeypatch.setattr(optimization, "_is_fast", lambda *_: True)
    model = make_model(*VARIANTS[name])
    optimized = optimize_for_inference(model, precision="float16")
    exact, before = [], dict(model.named_parameters())
    for name, parameter in optimized.named_parameters():
        if parameter.dtype == torch.float32:
            assert torch.equal(parameter, before[name])
            exact.append(name)
        else:
            assert parameter.dtype == torch.float16
    for part in ("class_embed", "bbox_embed", "query_embed", "point1", "point2", "point3", *predicted):
        assert any(part in name for name in exact)
    assert not any("attn" in name or "backbone" in name for name in exact)


def test_slow_precisions_are_replaced(make_model, make_inputs, monkeypatch, caplog):
    monkeypatch.setattr(optimization, "_is_fast", lambda *_: False)
    model = make_model()
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        optimized = optimize_for_inference(model, precision="float16")
    assert caplog.messages == ["Predicting in float32: this CPU computes slowly in float16."]
    assert {x.dtype for x in optimized.parameters()} == {torch.float32}


def test_attention_can_be_recorded(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs(SIZES[:1], [0])
    optimized = optimize_for_inference(model)
    recorded = []
    for x in (model, optimized):
        with record_attention(x) as record, torch.no_grad():
            x(inputs)
        recorded.append(record.cross_attention())
    assert_close(*recorded, atol=1e-4, rtol=0)


def test_mistakes(make_model):
    model = make_model()
    with pytest.raises(UserError, match=r"as it was built and trained, not a Linear"):
        optimize_for_inference(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="not one that was optimized before"):
        optimize_for_inference(optimize_for_inference(model))
    with pytest.raises(UserError, match=r"PRECISION is 'half': choose one of bfloat16, float16, float32"):
        optimize_for_inference(model, precision="half")


NORMS = {
    "frozen": lambda: FrozenBatchNorm2d(6),
    "batch": lambda: nn.BatchNorm2d(6),
    "batch, eps": lambda: nn.BatchNorm2d(6, eps=0.1),
    "batch, no scale": lambda: nn.BatchNorm2d(6, affine=False),
    "sync": lambda: nn.SyncBatchNorm(6),
}


@torch.no_grad()
def randomized(norm):
    for name, x in (*norm.named_parameters(), *norm.named_buffers()):
        if x.is_floating_point():
            x.uniform_(0.5, 2) if name == "running_var" else x.normal_()
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_folded_convolution(norm, bias):
    torch.manual_seed(0)
    convolution = Conv2d(4, 6, 3, padding=1, groups=2, bias=bias, norm=randomized(norm()), activation=torch.relu)
    x = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        plain = nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1, groups=2)
        statistics = convolution.norm.running_mean, convolution.norm.running_var
        affine = convolution.norm.weight, convolution.norm.bias
        expected = nn.functional.batch_norm(plain, *statistics, *affine, eps=convolution.norm.eps).relu()
        assert fold_batch_norms(nn.Sequential(convolution)) == 1
        assert convolution.norm is None
        assert_close(convolution(x), expected, atol=1e-5, rtol=1e-5)


def test_norms_of_the_image_are_not_folded():
    for norm in (nn.GroupNorm(2, 6), nn.BatchNorm2d(6, track_running_stats=False)):
        convolution = Conv2d(4, 6, 1, norm=copy.deepcopy(norm))
        assert fold_batch_norms(convolution) == 0
        assert type(convolution.norm) is type(norm)


@pytest.mark.parametrize(("norm", "count"), [("FrozenBN", 20), ("BN", 20), ("GN", 0)])
def test_all_batch_norms_of_a_resnet_are_folded(make_cfg, norm, count):
    backbone = build_masked_backbone(make_cfg("MODEL.RESNETS.NORM", norm)).eval()
    assert fold_batch_norms(backbone) == count
