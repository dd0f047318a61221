"""Activation checkpoints: less memory for more time, by recomputing in the backward pass (arXiv 1604.06174)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from detr_d2.config.checks import check_parts
from detr_d2.modeling.network import DetrNetwork
from detr_d2.utils.errors import UserError

_MODULES = {
    "backbone": lambda network: network.backbone[0].backbone,
    "transformer": lambda network: network.transformer,
}
"""Modules by the values of ``SOLVER.ACTIVATION_CHECKPOINTS``."""


def checkpoint_activations(network: DetrNetwork, names: Sequence[str]) -> None:
    """Enable checkpointing for some parts: their blocks keep only their input, and run again in the backward pass.

    The blocks are the repeated modules of a part: the residual blocks of a ResNet, the layers of a transformer.
    Gradients, running statistics and parameter names do not change. ``names`` are "backbone", "transformer" or both.

    Raises:
        UserError: there is no such part, or nothing in it repeats.
    """
    check_parts(names)
    for name in dict.fromkeys(names):
        module = _MODULES[name](network)
        blocks = list(repeated_modules(module))
        if not blocks:
            raise UserError(
                f"SOLVER.ACTIVATION_CHECKPOINTS: {type(module).__name__} has no list of blocks; leave out {name}."
            )
        for block in blocks:
            block.forward = partial(_forward, block, block.forward)


def repeated_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists, below ``module``, of modules of one class that have children."""
    for child in module.children():
        members = list(child) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        classes = {type(x) for x in members}
        if len(classes) == 1 and not issubclass(*classes, nn.Sequential) and any(members[0].children()):
            yield from members
        else:
            yield from repeated_modules(child)


def _forward(block: nn.Module, forward: Callable, *inputs: Any, **options: Any) -> Any:
    """Call ``forward``, the method of ``block``, without keeping activations."""
    tensors = (x for x in (*inputs, *block.parameters()) if isinstance(x, Tensor))
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return forward(*inputs, **options)
    has_run = False

    def run(*inputs: Any, **options: Any) -> Any:
        nonlocal has_run
        if not has_run:
            has_run = True
            return forward(*inputs, **options)
        with _unchanged_statistics(block):
            return forward(*inputs, **options)

    return checkpoint(run, *inputs, use_reentrant=False, **options)


@contextmanager
def _unchanged_statistics(block: nn.Module) -> Iterator[None]:
    """Redirect updates of running statistics to copies: a batch that runs again counts once."""
    norms = [x for x in block.modules() if isinstance(x, _NormBase) and x.training]
    buffers = [dict(x._buffers) for x in norms]
    for norm, own in zip(norms, buffers, strict=True):
        norm._buffers.update({name: None if x is None else x.clone() for name, x in own.items()})
    try:
        yield
    finally:
        for norm, own in zip(norms, buffers, strict=True):
            norm._buffers.update(own)
