"""SMCA over several levels, against convolutions and attention that are written out for one image at a time."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.config import load_config
from detr_d2.modeling import MultiScaleSmcaTransformer, record_attention
from detr_d2.modeling.attention_recording import _on_finest
from detr_d2.modeling.multiscale_encoder import MultiScaleEncoderLayer, Pyramid, flatten
from detr_d2.modeling.smca import SpatialBias
from detr_d2.structures import Features, ProjectedLevel, Queries
from detr_d2.utils.errors import UserError

MULTI_SCALE = ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
LEVELS = ("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"])
# Of four levels: a batch of two images, and the second image's share of it.
SIZES = [(17, 12), (9, 6), (5, 3), (3, 2)]
VALID = [(11, 12), (6, 6), (3, 3), (2, 2)]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("smca_ms_r50", (), 40_763_514),
        ("smca_ms_r50", ("MODEL.DETR.SMCA.SHARED_CROSS_LEVEL", "False"), 41_070_714),
        ("smca_ms_r50", ("MODEL.DETR.SMCA.POINTWISE", "False"), 39_974_010),
        ("smca_ms_r101", (), 60_010_618),
    ],
)
def test_number_of_parameters_is_the_published(name, options, count):
    """The published models count the ids of COCO, up to 90, and no-object: 92 rows in the class head."""
    cfg = load_config(name, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DETR.NUM_CLASSES", "91", *options])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(x.numel() for x in model.parameters() if x.requires_grad) == count


def make_levels(channels: int, generator: torch.Generator) -> list[ProjectedLevel]:
    """Return the levels of a batch of two images, the second of them padded with values that are not zero."""
    levels = []
    for size, (height, width) in zip(SIZES, VALID, strict=True):
        mask = torch.zeros(2, *size, dtype=torch.bool)
        mask[1, height:], mask[1, :, width:] = True, True
        values = (torch.randn(2, channels, *size, generator=generator) for _ in range(2))
        levels.append(ProjectedLevel(*values, mask))
    return levels


def alone(x: torch.Tensor, index: int, level: int) -> torch.Tensor:
    """Return the (1, …, h, w) valid part of an image."""
    height, width = (SIZES, VALID)[index][level]
    return x[index : index + 1, ..., :height, :width]


def normalized(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], norm.weight, norm.bias).movedim(-1, 1)


def convolved(convolution: nn.Conv2d, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return F.conv2d(x, convolution.weight, convolution.bias, stride=stride, padding=3, groups=x.shape[1])


def dense(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, linear.weight[..., None, None], linear.bias) if isinstance(linear, nn.Linear) else x


def encoded(layer: MultiScaleEncoderLayer, maps: list[torch.Tensor], pos: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the levels of one image after a post-norm layer, from (1, C, h, w) features and positions."""
    own = [
        convolved(convolution, dense(layer.pointwise_in, x + p))
        for convolution, x, p in zip(layer.within, maps, pos, strict=True)
    ]
    up, down = (x if len(x) > 1 else [x[0]] * (len(maps) - 1) for x in (layer.up, layer.down))
    results = []
    for i, x in enumerate(maps):
        mixed = own[i]
        if i + 1 < len(maps):
            coarser = convolved(up[i], own[i + 1])
            mixed = mixed + F.interpolate(coarser, size=x.shape[-2:], mode="bilinear", align_corners=True)
        if i > 0:
            mixed = mixed + convolved(down[i - 1], own[i - 1], stride=2)
        x = normalized(layer.norm1, x + dense(layer.pointwise_out, mixed))
        results.append(normalized(layer.norm2, x + dense(layer.linear2, dense(layer.linear1, x).relu())))
    return results


@pytest.mark.parametrize(("shared", "pointwise"), [(True, True), (False, True), (True, False)])
def test_encoder_layer_is_the_description_for_each_image_alone(shared, pointwise):
    """Padding has no influence; the last level of the second image is one of two rows."""
    torch.manual_seed(0)
    layer = MultiScaleEncoderLayer(8, 16, 0.0, False, len(SIZES), shared, pointwise)
    levels = make_levels(8, torch.Generator().manual_seed(0))
    pyramid = Pyramid.of(levels)
    src, pos = flatten([x.tensor for x in levels]), flatten([x.pos for x in levels])
    found = pyramid.maps(layer(src, pos, pyramid))
    for index in range(2):
        parts = ([alone(getattr(x, name), index, i) for i, x in enumerate(levels)] for name in ("tensor", "pos"))
        for i, expected in enumerate(encoded(layer, *parts)):
            assert_close(alone(found[i], index, i), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "padded"), [([(64, 64), (64, 56)], True), ([(64, 64), (64, 64)], False)])
def test_all_levels_have_a_mask_or_none(make_model, make_inputs, sizes, padded):
    """Code that is compiled for padded batches serves all; only the level of stride 8 differs in size here."""
    model = make_model(*MULTI_SCALE, *LEVELS)
    backbone, batch = model.detr.backbone, model.preprocess_image(make_inputs(sizes, [0, 0]))
    with torch.no_grad():
        levels = model.detr.input_proj(backbone(batch)[0], batch, backbone[1]).projected
    assert [x.padding_mask is not None for x in levels] == [padded] * 4
    assert [x.tensor.shape[-1] for x in levels] == [8, 4, 2, 1]


@pytest.fixture
def transformer() -> MultiScaleSmcaTransformer:
    """Return a decoder of two layers over the levels themselves, with offsets, scales and shares that differ."""
    torch.manual_seed(0)
    sizes = {"hidden_dim": 16, "nheads": 2, "enc_layers": 0, "dec_layers": 2, "dim_feedforward": 16, "dropout": 0.0}
    transformer = MultiScaleSmcaTransformer(**sizes)
    for layer in transformer.decoder.layers:
        nn.init.normal_(layer.point3.weight)
        nn.init.normal_(layer.point2.bias, std=2.0)
    return transformer.eval()


def attended(
    layer: nn.Module, query: torch.Tensor, state: torch.Tensor, point: torch.Tensor, memory: list
) -> torch.Tensor:
    """Return the cross attention of one image, of (Q, C) queries around (Q, 2) points relative to the image.

    Offsets, scales and shares are predicted from the (Q, C) state. ``memory`` has for each of the four levels features
    and their positions, (C, h, w), the width and height of the image in features, and the size of a feature, of which
    the coarsest level of the backbone has 1.
    """
    attention = layer.multihead_attn
    heads, width = attention.num_heads, query.shape[1] // attention.num_heads
    offsets, scales = (x.unflatten(-1, (4, heads, 2)) for x in (layer.point2(state), layer.point3(state).square()))
    shares = layer.level_share(state).softmax(-1)
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    results = torch.zeros_like(query)
    for level, (features, pos, image_size, unit) in enumerate(memory):
        keys, values = (features + pos).flatten(1).T, features.flatten(1).T
        q, k, v = (x @ w.T + b for x, w, b in zip((query, keys, values), weights, biases, strict=True))
        rows, columns = features.shape[-2:]
        for head in range(heads):
            channels = slice(head * width, (head + 1) * width)
            logits = q[:, channels] @ k[:, channels].T / math.sqrt(width)
            x, y = (point * torch.tensor(image_size) + offsets[:, level, head]).unbind(-1)
            for row in range(rows):
                for column in range(columns):
                    squares = torch.stack(((x - column) * unit, (y - row) * unit), -1).square()
                    logits[:, row * columns + column] -= (scales[:, level, head] * squares).sum(-1) / 8
            results[:, channels] += shares[:, level, None] * (logits.softmax(-1) @ v[:, channels])
    return attention.out_proj(results)


def test_decoder_attends_as_described(transformer):
    """Within every level, around its own points, in every layer; each image with shares of its own."""
    levels = make_levels(16, torch.Generator().manual_seed(1))
    # In features of the third level, which is the coarsest of the backbone.
    image_sizes = torch.tensor([[3.0, 4.2], [2.9, 2.75]])
    sizes = tuple((x.tensor.shape[-2], x.tensor.shape[-1]) for x in levels)
    features = Features(levels[2].tensor, levels[2].padding_mask, image_sizes, sizes[2], projected=tuple(levels))
    queries = Queries.of_model(torch.randn(5, 16))
    calls, states, positions = [], [], []
    transformer.encoder.register_forward_pre_hook(lambda module, inputs: positions.append(inputs[1]))
    for layer in transformer.decoder.layers:
        layer.norm4.register_forward_hook(lambda module, inputs, output: states.append(output))
        layer.multihead_attn.register_forward_hook(
            lambda module, inputs, output: calls.append((inputs[0], output.detach()))
        )
    with torch.no_grad():
        decoded = transformer(features, levels[2].pos, queries, all_layers=True)
        for index in range(2):
            point = transformer.decoder.layers[0].point1(states[0].expand(2, -1, -1)[index]).sigmoid()
            maps = [alone(x.tensor, index, i) for i, x in enumerate(levels)]
            pos = [
                alone(x.pos, index, i) + e[:, None, None]
                for i, (x, e) in enumerate(zip(levels, transformer.level_embed, strict=True))
            ]
            down = transformer.downsample
            finest = F.conv2d(maps[0], down.weight, down.bias, stride=2, padding=1)
            memory = [
                (x[0], p[0], (image_sizes[index] / unit).tolist(), unit)
                for x, p, unit in zip((finest, *maps[1:]), (pos[1], *pos[1:]), (0.5, 0.5, 1, 2), strict=True)
            ]
            for layer, (query, found), state in zip(transformer.decoder.layers, calls, states, strict=True):
                query, state = (x.expand(2, -1, -1)[index] for x in (query, state))
                assert_close(found[index], attended(layer, query, state, point, memory), atol=1e-5, rtol=1e-4)
    # The softmax of a level cancels what all its features have in common, so only the encoder sees the embedding.
    common = transformer.level_embed.repeat_interleave(torch.tensor([h * w for h, w in SIZES]), dim=0)
    assert_close(positions[0], flatten([x.pos for x in levels]) + common)
    assert decoded.hidden.shape == (2, 2, 5, 16)
    assert decoded.reference.shape == (2, 5, 2)
    # What masks are made from.
    assert decoded.memory.shape[-2:] == SIZES[2]


def test_no_bias_of_the_size_of_the_attention(make_model, make_inputs, monkeypatch):
    """Where a Gaussian has factors, in float32."""
    explicit = []
    monkeypatch.setattr(SpatialBias, "explicit", lambda bias: explicit.append(bias) or 1 / 0)
    model = make_model(*MULTI_SCALE, *LEVELS)
    with torch.no_grad():
        model(make_inputs([(64, 96), (80, 64)], [0, 0]))
        with pytest.raises(ZeroDivisionError), torch.autocast("cuda" if torch.cuda.is_available() else "cpu"):
            make_model(*MULTI_SCALE, "MODEL.DETR.SMCA.DYNAMIC_SCALE", "type4")(make_inputs([(64, 96)], [0]))
    assert len(explicit) == 1


@pytest.mark.parametrize(
    "options",
    [
        *(("MODEL.DETR.SMCA.DYNAMIC_SCALE", f"type{i}") for i in (1, 2, 3, 4)),
        ("MODEL.DETR.PRE_NORM", True),
        ("MODEL.DETR.SMCA.SHARED_CROSS_LEVEL", False, "MODEL.DETR.SMCA.HEAD_MIXTURE", True),
        ("MODEL.DETR.SMCA.POINTWISE", False, *LEVELS),
        ("MODEL.DETR.POSITION_EMBEDDING", "learned", "MODEL.DETR.ENC_LAYERS", 0, "MODEL.DETR.DEC_LAYERS", 1),
    ],
    ids=["type1", "type2", "type3", "type4", "pre-norm", "not shared", "depthwise alone", "learned positions"],
)
def test_every_variant_trains(make_model, make_inputs, options):
    """Every parameter has a gradient, in an image without objects too, and under autocast."""
    model = make_model(*MULTI_SCALE, *options).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_inputs([(64, 96), (80, 64)], [3, 0]))
    sum(losses.values()).backward()
    trained = {name: x.grad for name, x in model.named_parameters() if x.requires_grad}
    assert not [name for name, x in trained.items() if x is None or not x.isfinite().all()]
    with torch.no_grad():
        instances = model.eval()(make_inputs([(64, 96)], [0]))[0]["instances"]
    assert len(instances) == 7


def test_panoptic_results(make_model, make_inputs):
    """Of the levels that the mask head reads, the transformer takes the coarsest three."""
    panoptic = ("MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.PANOPTIC.NUM_THINGS", 3)
    model = make_model("MODEL.MASK_ON", True, *panoptic, *MULTI_SCALE)
    assert model.detr.input_proj.strides == (8, 16, 32, 64)
    with torch.no_grad():
        results = model(make_inputs([(64, 96), (80, 64)], [0, 0]))
    assert [tuple(x["panoptic_seg"][0].shape) for x in results] == [(64, 96), (80, 64)]
    assert results[0]["instances"].pred_masks.shape == (7, 64, 96)


def test_first_weights(make_cfg):
    """Gaussians have one width at first, and convolutions keep the size of their input, about."""
    torch.manual_seed(0)
    transformer = build_model(make_cfg(*MULTI_SCALE)).detr.transformer
    point3 = transformer.decoder.layers[1].point3
    assert (point3.weight == 0).all()
    assert (point3.bias == 1).all()
    for convolution in transformer.encoder.layers[0].within:
        # Uniform up to 1 / 7.
        assert convolution.weight.std().item() == pytest.approx(1 / 7 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    ("levels", "dilation", "message"),
    [(["res4", "res5"], 2, r"strides \[16, 16\].*RES5_DILATION 1"), (["res3", "res5"], 1, r"strides \[32, 8\]")],
)
def test_levels_that_do_not_fit(make_model, levels, dilation, message):
    resnet = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.RES5_DILATION", dilation)
    with pytest.raises(UserError, match=message):
        make_model(*MULTI_SCALE, *resnet, "MODEL.RESNETS.OUT_FEATURES", levels)


def test_recorded_attention(make_model, make_inputs):
    """The weights of all levels are on the map of stride 16, and none are on its padding."""
    model = make_model(*MULTI_SCALE, *LEVELS)
    with record_attention(model, [(0.5, 0.5)]) as record, torch.no_grad():
        model(make_inputs([(64, 96), (80, 40)], [0, 0]))
    assert (record.size, record.stride) == ((5, 6), 16)
    assert len(record.decoder) == 3
    for weights in record.decoder:
        assert_close(weights.sum(-1), torch.ones(2, 4, 7), atol=1e-5, rtol=0)
        assert (weights.masked_select(record.padding_mask.flatten(1)[:, None, None]) == 0).all()
    with pytest.raises(UserError, match=r"no layer -1 in the encoder: 0"):
        record.self_attention((0.5, 0.5))


def test_weights_of_coarse_features_are_spread():
    """By hand: a coarse feature covers up to four of the 2 x 3 finest, of which the last column is padded."""
    mask = torch.tensor([[[False, False, True], [False, False, True]]])
    finest = [[0.1, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.0, 0.0, 0.0]]
    weights = torch.tensor([*finest[0], *finest[1], 0.4, 0.0, 0.3])[None, None, None]
    found = _on_finest(weights, [(2, 3), (1, 2), (1, 1)], mask)
    assert_close(
        found[0, 0, 0], torch.tensor([0.1, 0.2, 0.0, 0.0, 0.0, 0.0]) + torch.tensor([1.0, 1, 0, 1, 1, 0]) * 0.175
    )
