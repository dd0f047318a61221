"""Change of a model of boxes to one that also predicts masks (arXiv 2005.12872, section 4.4)."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from detr_d2.modeling.mask_head import AttentionMaps, MaskHead


def add_mask_head(model: DictConfig, level_channels: list[int], maps_gain: float = 1.0) -> None:
    """Add a mask head that reads three finer levels of the ResNet, with these channels, coarse to fine."""
    network = model.network
    network.backbone.backbone.backbone.out_features = ["res2", "res3", "res4", "res5"]
    sizes = {"hidden_dim": "${..transformer.hidden_dim}", "nheads": "${..transformer.nheads}"}
    network.attention_maps = L(AttentionMaps)(**sizes)
    network.mask_head = L(MaskHead)(**sizes, level_channels=level_channels, maps_gain=maps_gain)
