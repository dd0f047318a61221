"""Checkpoints as other projects save them."""

import argparse
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture
def save_original(tmp_path, make_cfg, make_original):
    """A function that saves a small original model as the original's main.py does; returns path and weights."""

    def save(*options, num_classes: int | None = None, name: str = "original.pth") -> tuple[Path, dict]:
        model = make_original(make_cfg(*options), num_classes=num_classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        sum(x.sum() for x in model.parameters()).backward()
        optimizer.step()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 200)
        path = tmp_path / name
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": scheduler.state_dict(),
                "epoch": 7,
                "args": argparse.Namespace(lr=1e-4, backbone="resnet18", masks=False, frozen_weights=None),
            },
            path,
        )
        return path, model.state_dict()

    return save


@pytest.fixture
def segmentation_weights(make_cfg, make_original):
    """Weights of the original's segmentation model around a small box model."""

    def make(num_classes: int = 91) -> dict[str, torch.Tensor]:
        segmentation = pytest.importorskip("detr.models.segmentation")
        box = make_original(make_cfg(), num_classes=num_classes)
        hidden_dim, heads = box.transformer.d_model, box.transformer.nhead
        # DETRsegm's own head fits ResNet-50 and the full width only; nothing here looks at its shapes.
        whole = nn.Module()
        whole.detr = box
        whole.bbox_attention = segmentation.MHAttentionMap(hidden_dim, hidden_dim, heads)
        whole.mask_head = segmentation.MaskHeadSmallConv(264, [1024, 512, 256], 256)
        return whole.state_dict()

    return make


@pytest.fixture
def torchvision_resnet() -> dict[str, torch.Tensor]:
    """A randomly initialised torchvision ResNet-18's state dict."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.state_dict()
