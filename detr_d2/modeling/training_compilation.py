"""``torch.compile`` for training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._functorch.config
import torch.fx.experimental._config
from detectron2.utils.env import TORCH_VERSION
from torch import nn

from detr_d2.modeling.activation_checkpoints import repeated_modules
from detr_d2.modeling.compilation import CompiledForward, Compiler

logger = logging.getLogger(__name__)

_COMPILING_AHEAD = "force_non_lazy_backward_lowering"
_OPTIONS = {
    # A backward pass that can't be compiled shows while there still is a way back.
    _COMPILING_AHEAD: True,
    # Gradients are computed outside of autocast, as they are without compiling.
    "backward_pass_autocast": "off",
}


def compile_layers(transformer: nn.Module) -> bool:
    """Compile the layers of ``transformer`` for training, in place; see :class:`~detr_d2.modeling.compilation.CompiledForward`.

    Layers of one class share their code, so that six take no longer to compile than one, and processes can exchange
    the gradients of one layer while those of the next are computed. The rest of the transformer stays as it is, and so
    do layers that are evaluated. Before :func:`~detr_d2.modeling.activation_checkpoints.checkpoint_activations`, which
    lets compiled layers run again.

    Returns:
        Whether this version of PyTorch can; if not, a warning is logged and nothing is changed.
    """
    if not can_train():
        found = ".".join(map(str, TORCH_VERSION))
        logger.warning(f"Training without torch.compile, which needs a later version of PyTorch; this is {found}.")
        return False
    compiler = Compiler("Training", {}, _settings, _is_trained, torch._dynamo.exc.TorchDynamoException)
    layers = list(repeated_modules(transformer))
    for layer in layers:
        layer.forward = CompiledForward(layer, compiler)
    logger.info(f"Training with torch.compile: {len(layers)} layers, which are compiled in the first iterations.")
    return True


def can_train() -> bool:
    """Whether PyTorch can be told to compile the backward pass when it compiles the forward pass."""
    return hasattr(torch._functorch.config, _COMPILING_AHEAD)


def _is_trained(layer: nn.Module) -> bool:
    return layer.training and torch.is_grad_enabled()


@contextmanager
def _settings() -> Iterator[None]:
    with (
        # Otherwise code is cut where the gradients end that processes exchange together: inside of a layer.
        torch._dynamo.config.patch(optimize_ddp=False),
        # Otherwise code for a first batch with features as high as wide serves no others.
        torch.fx.experimental._config.patch(use_duck_shape=False),
        torch._functorch.config.patch(_OPTIONS),
    ):
        yield
