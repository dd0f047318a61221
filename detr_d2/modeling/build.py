"""The registry of transformers."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from detr_d2.config import choice

DETR_TRANSFORMER_REGISTRY = Registry("DETR_TRANSFORMER")
DETR_TRANSFORMER_REGISTRY.__doc__ = """
Transformers between the image features and the heads. Called with a cfg; the object has ``hidden_dim``
and the forward signature of :class:`detr_d2.modeling.transformer.DetrTransformer`.
"""


def build_transformer(cfg: CfgNode) -> nn.Module:
    """Build the transformer that ``MODEL.DETR.TRANSFORMER`` names."""
    return choice(DETR_TRANSFORMER_REGISTRY, "MODEL.DETR.TRANSFORMER", cfg.MODEL.DETR.TRANSFORMER)(cfg)
