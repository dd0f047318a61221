import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detr_d2.criterion import SetCriterion
from detr_d2.criterion.matching import HungarianMatcher, MatchingCost
from detr_d2.modeling import BackboneWithPosition, DetrNetwork, SmcaTransformer
from detr_d2.modeling.meta_arch import Detr
from detr_d2.modeling.position_encoding import PositionEmbeddingSine, feature_grid
from detr_d2.modeling.smca import SpatialAttention, SpatialBias
from detr_d2.structures import Features, Targets
from detr_d2.utils.errors import UserError

SETTINGS = (
    "type1_smooth8",
    "type2_smooth8",
    "type3_smooth8",
    "type4_smooth8",
    "type2_smooth4",
    "type2_smooth16",
    "type2_smooth8_head_mixture",
    "type2_smooth8_query_mixture",
    "type2_smooth8_head_mixture_query_mixture",
)


class StoredFeatures(nn.Module):
    """A backbone whose features were stored."""

    num_channels = 64

    def __init__(self, features: Features):
        super().__init__()
        self.features = features

    def forward(self, batch: None) -> Features:
        return self.features


def weight_of(name: str, shape: torch.Size) -> torch.Tensor:
    """Return the weights that replaced the authors'; see the description of the golden tensors."""
    v = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if v.ndim >= 2:
        v /= np.sqrt(np.float32(shape[1]))
    elif "norm" in name and name.endswith("weight"):
        v = 1 + np.float32(0.1) * v
    else:
        v *= np.float32(0.1)
    if "point2" in name:
        v *= np.float32(0.5)
    if "point3" in name and name.endswith("bias"):
        v = 1 + v
    return torch.from_numpy(v)


def build(setting: str, features: Features) -> DetrNetwork:
    dynamic_scale, smooth, *mixtures = setting.split("_", 2)
    mixtures = "".join(mixtures)
    transformer = SmcaTransformer(
        dynamic_scale=dynamic_scale,
        smooth=float(smooth.removeprefix("smooth")),
        head_mixture="head_mixture" in mixtures,
        query_mixture="query_mixture" in mixtures,
        hidden_dim=256,
        nheads=8,
        enc_layers=2,
        dec_layers=6,
        dim_feedforward=128,
        dropout=0.0,
    )
    backbone = BackboneWithPosition(StoredFeatures(features), PositionEmbeddingSine(256))
    network = DetrNetwork(backbone=backbone, transformer=transformer, num_classes=11, num_queries=20, class_prior=0.01)
    network.load_state_dict({name: weight_of(name, x.shape) for name, x in network.state_dict().items()})
    return network.eval()


@pytest.fixture(scope="session")
def golden(real_data):
    folder = real_data.parent / "golden" / "smca"
    if not folder.is_dir():
        pytest.skip(f"no golden tensors in {folder}")
    return folder


@pytest.fixture(scope="session")
def features(golden):
    with np.load(golden / "inputs.npz") as stored:
        sizes = torch.from_numpy(stored["image_sizes"]).float()
        tensors = [torch.from_numpy(stored[name]) for name in ("features", "padding_mask")]
        valid_sizes = (tuple(tensors[0].shape[-2:]),) * len(sizes)
        return Features(*tensors, sizes.flip(-1) / 32, valid_sizes)


@pytest.mark.parametrize("setting", SETTINGS)
def test_predictions_are_the_authors(golden, features, setting):
    """Compare logits and boxes of all layers, under the authors' parameter names."""
    network = build(setting, features)
    with np.load(golden / f"{setting}.npz") as stored:
        names = {str(x).split()[0] for x in stored["state_dict_names"]}
        expected = [torch.from_numpy(stored[name]) for name in ("pred_logits", "pred_boxes")]
    assert set(network.state_dict()) == names
    with torch.no_grad():
        output = network(None, all_layers=True)
        last = network(None, all_layers=False)
    for found, reference, alone in zip(output[:2], expected, last[:2], strict=True):
        assert_close(found, reference, atol=1e-4, rtol=0)
        assert_close(alone, found[-1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_matches_and_losses_are_the_authors(golden, features, setting):
    """Compare the matches of the last layer and the losses of all layers."""
    with np.load(golden / "inputs.npz") as inputs:
        objects = [(torch.from_numpy(inputs[f"labels_{i}"]), torch.from_numpy(inputs[f"boxes_{i}"])) for i in (0, 1)]
    counts = tuple(len(labels) for labels, _ in objects)
    labels, boxes = (
        nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=1) for x in zip(*objects, strict=True)
    )
    targets = Targets(labels, boxes, counts)
    cost = MatchingCost(class_weight=2.0, class_loss="focal")
    criterion = SetCriterion(num_classes=11, cost=cost, matcher=HungarianMatcher(), class_loss="focal")
    with torch.no_grad():
        output = build(setting, features)(None, all_layers=True)
        matches = criterion.match(output, targets)
        _, metrics = criterion.losses(output, targets, matches)
    with np.load(golden / f"{setting}.npz") as stored:
        for i, count in enumerate(counts):
            expected = dict(zip(stored[f"match_target_{i}"].tolist(), stored[f"match_query_{i}"].tolist(), strict=True))
            assert dict(enumerate(matches[-1, i, :count].tolist())) == expected
        losses = {name.removeprefix("loss/"): stored[name].item() for name in stored if name.startswith("loss/")}
    assert len(losses) == 19
    for name, expected in losses.items():
        assert metrics[name.replace("loss_", "unweighted/")].item() == pytest.approx(expected, rel=1e-4, abs=1e-4), name


def explicit(network: DetrNetwork) -> DetrNetwork:
    """Let the cross attention of ``network`` compute the whole bias, whatever its type."""
    for layer in network.transformer.decoder.layers:
        layer.multihead_attn.__class__ = ExplicitAttention
    return network


class ExplicitAttention(SpatialAttention):
    def forward(self, query, key, value, padding_mask, bias):
        q, k, v = self.project(query, key, value)
        size = (int(x) + 1 for x in bias.grid[-1].flip(0))
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in size)).flip(-1)
        dx, dy = (bias.point[..., None, :] - grid).square().unbind(-1)
        terms = [dx, dy] if bias.weight.shape[-1] == 2 else [dx, dy, dx * dy]
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        for weight, term in zip(bias.weight.unbind(-1), terms, strict=True):
            logits = logits - weight[..., None] * term
        logits = logits.masked_fill(padding_mask[:, None, None], -torch.inf)
        return self.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_are_those_of_the_explicit_bias(features, setting):
    gradients = []
    for network in (build(setting, features), explicit(build(setting, features))):
        logits, boxes, _ = network(None, all_layers=True)
        (logits.square().mean() + boxes.square().mean()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[1].items():
        distance = (gradients[0][name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
        assert distance < 1e-3, f"{name}: {distance}"


@pytest.mark.parametrize("setting", SETTINGS[:4])
def test_bfloat16_is_close(features, setting):
    network = build(setting, features)
    with torch.no_grad():
        expected = network(None, all_layers=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predictions = network(None, all_layers=False)
    assert (predictions.boxes - expected.boxes).abs().mean() < 5e-3
    error = (predictions.logits.float() - expected.logits).norm() / expected.logits.norm()
    assert error < 0.05


@pytest.mark.parametrize("training", [False, True])
def test_autocast_does_not_round_the_bias(training):
    """Squared distances of forty features cancel each other; bfloat16 would keep eight bits of them."""
    torch.manual_seed(0)
    attention = SpatialAttention(16, 2, dropout=1e-4).train(training)
    query, memory = torch.randn(1, 5, 16), torch.randn(1, 1600, 16)
    bias = SpatialBias(torch.rand(1, 2, 5, 2) * 40, torch.full((1, 2, 5, 2), 0.5), feature_grid(40, 40, query.device))
    expected = attention(query, memory, memory, None, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.operands(query, memory, memory, None, bias)[0].dtype == torch.float32
        found = attention(query, memory, memory, None, bias)
    assert_close(found.float(), expected, rtol=0, atol=0.03 * expected.abs().max().item())


@pytest.mark.parametrize("dynamic_scale", ["type1", "type2", "type3", "type4"])
@pytest.mark.parametrize(
    "options",
    [(), ("MODEL.DETR.PRE_NORM", True), ("MODEL.DETR.DEC_LAYERS", 1), ("MODEL.DETR.NHEADS", 2)],
    ids=["plain", "pre-norm", "one layer", "two heads"],
)
def test_any_size_trains(make_model, make_inputs, dynamic_scale, options):
    """Every parameter has a gradient with any number of heads and layers, and with pre-norm."""
    smca = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", dynamic_scale)
    model = make_model(*smca, "MODEL.DETR.CLASS_LOSS", "focal", *options).train()
    sum(model(make_inputs([(64, 96), (80, 64)], [3, 0])).values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    with torch.no_grad():
        instances = model.eval()(make_inputs([(64, 96)], [0]))[0]["instances"]
    assert len(instances) == 7
    assert instances.pred_classes.max() < 5


def test_first_scale_and_class_prior(make_cfg):
    cfg = make_cfg("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
    network = Detr(cfg).detr
    point3 = network.transformer.decoder.layers[1].point3
    assert (point3.weight == 0).all()
    assert (point3.bias == 1).all()
    assert_close(network.class_embed.bias.sigmoid(), torch.full((6,), 0.01))


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("MODEL.DETR.SMCA.DYNAMIC_SCALE", "type5", ()),
        ("MODEL.DETR.SMCA.SMOOTH", 0.0, ()),
        ("MODEL.DETR.CLASS_LOSS", "hinge", ()),
        ("MODEL.DETR.NUM_OBJECT_QUERIES", 7, ("MODEL.DETR.SMCA.QUERY_MIXTURE", True)),
        ("MODEL.DETR.NHEADS", 1, ("MODEL.DETR.SMCA.HEAD_MIXTURE", True)),
        ("MODEL.DETR.NHEADS", 5, ()),
    ],
)
def test_refused_values_name_their_key(make_cfg, key, value, others):
    with pytest.raises(UserError, match=key):
        Detr(make_cfg("MODEL.DETR.TRANSFORMER", "SmcaTransformer", key, value, *others))
