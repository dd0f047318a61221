"""Memory for time: activations are computed again in the backward pass instead of being kept (arXiv 1604.06174)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from detr_d2.config.checks import check_parts
from detr_d2.modeling.detr import DetrNetwork
from detr_d2.utils.errors import UserError

_KEY = "SOLVER.ACTIVATION_CHECKPOINTS"
PARTS = {
    "backbone": lambda network: (network.backbone[0].backbone, network.backbone[0].resumption),
    "transformer": lambda network: (network.transformer, lambda: nullcontext),
}
"""What ``SOLVER.ACTIVATION_CHECKPOINTS`` may name: the module, and its :data:`State`."""

State = Callable[[], Callable[[], AbstractContextManager]]
"""Called while a block runs: makes contexts in which it does the same again, whatever the model did in between."""


def checkpoint_activations(network: DetrNetwork, parts: Sequence[str]) -> None:
    """Let every block of ``parts`` keep its input alone in training, and run again in the backward pass.

    The blocks are the residual blocks of a ResNet, the layers of a transformer: the repeated modules of a part.
    Gradients, running statistics and names of parameters stay what they are.

    Raises:
        UserError: there is no such part, or nothing in it repeats.
    """
    check_parts(parts)
    for name in dict.fromkeys(parts):
        module, state = PARTS[name](network)
        blocks = list(repeated_modules(module))
        if not blocks:
            raise UserError(f"{_KEY}: {type(module).__name__} has no list of blocks; leave out {name}.")
        for block in blocks:
            block.forward = partial(_forward, block, block.forward, state)


def repeated_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists, below ``module``, of modules of one class that have parts of their own."""
    for child in module.children():
        members = list(child) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        kinds = {type(x) for x in members}
        if len(kinds) == 1 and not issubclass(*kinds, nn.Sequential) and any(members[0].children()):
            yield from members
        else:
            yield from repeated_modules(child)


def _forward(block: nn.Module, forward: Callable, state: State, *inputs: Any, **options: Any) -> Any:
    """What ``forward``, that of ``block``, returns; its activations are not kept, where it would keep any."""
    tensors = (x for x in (*inputs, *block.parameters()) if isinstance(x, Tensor))
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return forward(*inputs, **options)
    resume = state()
    ran = False

    def run(*inputs: Any, **options: Any) -> Any:
        nonlocal ran
        if not ran:
            ran = True
            return forward(*inputs, **options)
        with resume(), _kept_statistics(block):
            return forward(*inputs, **options)

    return checkpoint(run, *inputs, use_reentrant=False, **options)


@contextmanager
def _kept_statistics(block: nn.Module) -> Iterator[None]:
    """Within it, norms count on copies of their running statistics: a batch that runs again counts once."""
    norms = [x for x in block.modules() if isinstance(x, _NormBase) and x.training]
    buffers = [dict(x._buffers) for x in norms]
    for norm, own in zip(norms, buffers, strict=True):
        norm._buffers.update({name: None if x is None else x.clone() for name, x in own.items()})
    try:
        yield
    finally:
        for norm, own in zip(norms, buffers, strict=True):
            norm._buffers.update(own)
