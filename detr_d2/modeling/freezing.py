"""A box model that stays as it is while a mask head is trained over it."""

from torch import nn

MASK_MODULES = ("bbox_attention", "mask_head")
"""The children of a :class:`~detr_d2.modeling.detr.DetrNetwork` that only masks are made with."""


def box_modules(network: nn.Module) -> list[nn.Module]:
    """The children of ``network`` that classes and boxes are made with."""
    return [module for name, module in network.named_children() if name not in MASK_MODULES]
