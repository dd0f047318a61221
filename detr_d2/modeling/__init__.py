"""The network and its parts."""

from detr_d2.config.pixel_checks import check_pixel_statistics
from detr_d2.modeling.attention_recording import AttentionRecord, record_attention
from detr_d2.modeling.backbone import BackboneWithPosition, MaskedBackbone, build_masked_backbone
from detr_d2.modeling.build import DETR_TRANSFORMER_REGISTRY, build_transformer
from detr_d2.modeling.detr import DetrNetwork
from detr_d2.modeling.freezing import box_modules
from detr_d2.modeling.mask_head import build_mask_modules
from detr_d2.modeling.position_encoding import build_position_embedding
from detr_d2.modeling.smca import SmcaTransformer
from detr_d2.modeling.timm_backbone import TimmBackbone
from detr_d2.modeling.transformer import DetrTransformer

__all__ = [
    "DETR_TRANSFORMER_REGISTRY",
    "AttentionRecord",
    "BackboneWithPosition",
    "DetrNetwork",
    "DetrTransformer",
    "MaskedBackbone",
    "SmcaTransformer",
    "TimmBackbone",
    "box_modules",
    "build_mask_modules",
    "build_masked_backbone",
    "build_position_embedding",
    "build_transformer",
    "check_pixel_statistics",
    "record_attention",
]
