"""The model and its components."""

from detr_d2.modeling.attention_recording import AttentionRecord, record_attention
from detr_d2.modeling.backbone import BackboneWithPosition, MaskedBackbone, build_masked_backbone
from detr_d2.modeling.mask_head import build_mask_modules
from detr_d2.modeling.meta_arch import Detr
from detr_d2.modeling.multiscale_smca import MultiScaleSmcaTransformer
from detr_d2.modeling.network import DetrNetwork
from detr_d2.modeling.position_encoding import build_position_embedding
from detr_d2.modeling.smca import SmcaTransformer
from detr_d2.modeling.timm_backbone import TimmBackbone
from detr_d2.modeling.top_down import TopDown
from detr_d2.modeling.transformer import DETR_TRANSFORMER_REGISTRY, DetrTransformer, build_transformer

__all__ = [
    "DETR_TRANSFORMER_REGISTRY",
    "AttentionRecord",
    "BackboneWithPosition",
    "Detr",
    "DetrNetwork",
    "DetrTransformer",
    "MaskedBackbone",
    "MultiScaleSmcaTransformer",
    "SmcaTransformer",
    "TimmBackbone",
    "TopDown",
    "build_mask_modules",
    "build_masked_backbone",
    "build_position_embedding",
    "build_transformer",
    "record_attention",
]
