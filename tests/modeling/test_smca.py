import zlib

import numpy as np
import pytest
import torch
from detectron2.structures import ImageList
from torch import nn
from torch.testing import assert_close

from detr_d2.modeling import BackboneWithPosition, DetrNetwork, SmcaTransformer
from detr_d2.modeling.backbone import Features
from detr_d2.modeling.position_encoding import PositionEmbeddingSine

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
    """A backbone that has looked already."""

    num_channels = 64

    def __init__(self, features: Features):
        super().__init__()
        self.features = features

    def forward(self, images: ImageList) -> Features:
        return self.features


def weight_of(name: str, shape: torch.Size) -> torch.Tensor:
    """The authors' weights were replaced by these; see the golden tensors' description."""
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
    return real_data.parent / "golden" / "smca"


@pytest.fixture(scope="session")
def features(golden):
    with np.load(golden / "inputs.npz") as stored:
        sizes = torch.from_numpy(stored["image_sizes"]).float()
        tensors = (torch.from_numpy(stored[name]) for name in ("features", "padding_mask"))
        return Features(*tensors, extents=sizes.flip(-1) / 32)


@pytest.mark.parametrize("setting", SETTINGS)
def test_predictions_are_the_authors(golden, features, setting):
    """Logits and boxes of all layers within 1e-4, under the authors' parameter names."""
    network = build(setting, features)
    with np.load(golden / f"{setting}.npz") as stored:
        names = {str(x).split()[0] for x in stored["state_dict_names"]}
        expected = [torch.from_numpy(stored[name]) for name in ("pred_logits", "pred_boxes")]
    assert set(network.state_dict()) == names
    with torch.no_grad():
        predictions = network(None, all_layers=True)
        last = network(None, all_layers=False)
    for ours, theirs, alone in zip(predictions, expected, last, strict=True):
        assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert_close(alone, ours[-1:], atol=1e-6, rtol=0)
