"""``torch.compile`` for predicting."""

import logging
from collections.abc import Sequence

import torch
from detectron2.utils.env import TORCH_VERSION
from torch import nn

from detr_d2.modeling.compilation import CompiledForward, Compiler

logger = logging.getLogger(__name__)

_OPTIONS = {
    # Weights become constants of the code: packed as the processor likes them, activations fused.
    "freezing": True
}
# 2.3 cuts the model into a piece a layer, each compiled by itself.
_OLDEST = (2, 4)


def compile_forward(modules: Sequence[nn.Module]) -> bool:
    """Replace each module's ``forward`` by compiled code, in place; see :class:`~detr_d2.modeling.compilation.CompiledForward`.

    Args:
        modules: in evaluation mode, their weights final.

    Returns:
        Whether this version of PyTorch can; if not, a warning is logged and nothing is changed.
    """
    if TORCH_VERSION < _OLDEST:
        needed, found = (".".join(map(str, x)) for x in (_OLDEST, TORCH_VERSION))
        logger.warning(f"Predicting without torch.compile, which needs PyTorch {needed} or later; this is {found}.")
        return False
    # Weights become constants only where nobody wants gradients.
    compiler = Compiler("Predicting", _OPTIONS, torch.no_grad)
    for module in modules:
        module.forward = CompiledForward(module, compiler)
    return True
