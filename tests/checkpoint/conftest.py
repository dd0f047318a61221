"""Checkpoints as other projects save them."""

import argparse
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture(scope="session")
def _original_files(tmp_path_factory) -> dict[tuple, tuple[Path, dict]]:
    return {}


@pytest.fixture
def save_original(_original_files, tmp_path_factory, make_cfg, make_original):
    """Save a small original model as the original's main.py does: a function that returns path and weights.

    Tests share the files: they must not write to them.
    """

    def save(*options, num_classes: int | None = None) -> tuple[Path, dict]:
        if (options, num_classes) not in _original_files:
            path = tmp_path_factory.mktemp("original") / "original.pth"
            weights = make_original(make_cfg(*options), num_classes=num_classes).state_dict()
            torch.save({"model": weights, **_training_state()}, path)
            _original_files[options, num_classes] = (path, weights)
        return _original_files[options, num_classes]

    return save


@pytest.fixture
def save_smca(tmp_path, make_cfg, make_original):
    """Save a small model of SMCA's authors: a function that returns path and weights.

    Their model is the original with these modules in every decoder layer, point1 in the first alone.
    """

    def save(kind: str, num_classes: int | None = None) -> tuple[Path, dict]:
        cfg = make_cfg()
        hidden_dim, heads = cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NHEADS
        weights = dict(make_original(cfg, num_classes=num_classes).state_dict())
        for i in range(cfg.MODEL.DETR.DEC_LAYERS):
            modules = {"norm4": nn.LayerNorm(hidden_dim), "point2": nn.Linear(hidden_dim, 2 * heads)}
            if i == 0:
                sizes = [(hidden_dim, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, 2)]
                modules |= {f"point1.layers.{j}": nn.Linear(*size) for j, size in enumerate(sizes)}
            if scales := {"type1": 0, "type2": 1, "type3": 2, "type4": 3}[kind]:
                modules["point3"] = nn.Linear(hidden_dim, scales * heads)
            for name, module in modules.items():
                prefix = f"transformer.decoder.layers.{i}.{name}."
                weights |= {prefix + key: x for key, x in module.state_dict().items()}
        path = tmp_path / "smca.pth"
        torch.save({"model": weights}, path)
        return path, weights

    return save


def _training_state() -> dict:
    # Of a small module, because the moments of a whole model only take time to write.
    module = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 200).state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(lr=1e-4, backbone="resnet18", masks=False, frozen_weights=None),
    }


@pytest.fixture
def save_original_shapes(tmp_path, make_cfg, make_original):
    """Save what ``save_original`` does with weights of zeros, in a file of a few kilobytes."""

    def save(*options) -> Path:
        with torch.device("meta"):
            weights = make_original(make_cfg(*options)).state_dict()
        weights = {name: torch.zeros(()).expand(x.shape) for name, x in weights.items()}
        torch.save({"model": weights}, tmp_path / "original.pth")
        return tmp_path / "original.pth"

    return save


@pytest.fixture
def segmentation_weights(make_cfg, make_original_segmentation):
    """Make weights of the original's segmentation model around a small box model."""

    def make(num_classes: int = 91) -> dict[str, torch.Tensor]:
        cfg = make_cfg("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8)
        return make_original_segmentation(cfg, num_classes=num_classes).state_dict()

    return make


@pytest.fixture
def torchvision_resnet() -> dict[str, torch.Tensor]:
    """Return the state dict of a randomly initialized torchvision ResNet-18."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.state_dict()
