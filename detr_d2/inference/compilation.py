"""``torch.compile`` for images of any size, with a way back."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils.env import TORCH_VERSION
from torch import nn

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# 2.3 cuts the model into a piece a layer, each compiled by itself.
_OLDEST = (2, 4)
_OPTIONS = {
    # Weights become constants of the code: packed as the processor likes them, norms folded, activations fused.
    "freezing": True
}


def can_compile() -> bool:
    """Whether ``torch.compile`` works here; warns and says why where it doesn't."""
    if TORCH_VERSION < _OLDEST:
        needed, found = (".".join(map(str, x)) for x in (_OLDEST, TORCH_VERSION))
        logger.warning(f"Predicting without torch.compile, which needs PyTorch {needed} or later; this is {found}.")
        return False
    try:
        compiled = torch.compile(lambda x: x * 2 + 1, backend=BACKEND)
        with torch.no_grad():
            compiled(torch.ones(8))
    except Exception as e:  # of a missing compiler, of Python or of PyTorch: each has its own
        logger.warning(f"Predicting without torch.compile, which does not work here: {_reason(e)}")
        return False
    return True


def compile_forward(module: nn.Module, name: str) -> None:
    """Replace ``module.forward`` by compiled code, made at the first call, in place.

    One code serves all sizes of images; what differs in structure (one image or several, padded or not) is compiled
    when it is first met. Where compiling fails, a warning is logged once and the module stays as it was. So it does as
    long as somebody watches it through hooks, which compiled code would not call.

    Args:
        module: in evaluation mode, its weights final.
        name: for the warning.
    """
    module.forward = CompiledForward(module, name)


class CompiledForward:
    """Calls a module's compiled code, or its own."""

    def __init__(self, module: nn.Module, name: str):
        self.name = name
        self.module = module
        self.eager = module.forward
        self.compiled: Callable | None = torch.compile(
            module.forward, dynamic=True, backend=BACKEND, options=_OPTIONS if BACKEND == "inductor" else None
        )
        self.hooks = self._count_hooks()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is None or self._count_hooks() != self.hooks:
            return self.eager(*args, **kwargs)
        try:
            # Weights become constants only where nobody wants gradients.
            with torch.no_grad():
                return self.compiled(*args, **kwargs)
        except Exception as e:
            # What the caller did wrong is wrong without compiling, too, and is raised again here.
            results = self.eager(*args, **kwargs)
            self.compiled = None
            logger.warning(f"The {self.name} goes on without torch.compile, which failed: {_reason(e)}")
            return results

    def _count_hooks(self) -> int:
        inner = (x for x in self.module.modules() if x is not self.module)
        return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in inner)


def _reason(error: Exception) -> str:
    # The first line tells which part of PyTorch failed, the second what was wrong.
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:2]])
