"""``torch.compile`` for images of any size, with a way back."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.env import TORCH_VERSION
from torch import nn

logger = logging.getLogger(__name__)

BACKEND = "inductor"
_OPTIONS = {
    # Weights become constants of the code: packed as the processor likes them, activations fused.
    "freezing": True
}
# 2.3 cuts the model into a piece a layer, each compiled by itself.
_OLDEST = (2, 4)


def compile_forward(modules: Sequence[nn.Module]) -> bool:
    """Replace each module's ``forward`` by compiled code, made at the first call, in place.

    One code serves all sizes of images; what differs in structure (one image or several, padded or not) is compiled
    when it is first met. Where compiling fails, a warning is logged once, and all modules go on as they were. So they
    do as long as somebody watches them through hooks, which compiled code would not call.

    Args:
        modules: in evaluation mode, their weights final.

    Returns:
        Whether this version of PyTorch can; if not, a warning is logged and nothing is changed.
    """
    if TORCH_VERSION < _OLDEST:
        needed, found = (".".join(map(str, x)) for x in (_OLDEST, TORCH_VERSION))
        logger.warning(f"Predicting without torch.compile, which needs PyTorch {needed} or later; this is {found}.")
        return False
    failure = _Failure()
    for module in modules:
        module.forward = CompiledForward(module, failure)
    return True


class _Failure:
    """What all modules of a model know of compiling: whether it failed."""

    def __init__(self):
        self.happened = False

    def report(self, error: Exception) -> None:
        self.happened = True
        # The first line tells which part of PyTorch failed, the second what was wrong.
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:2]])
        logger.warning(f"Predicting without torch.compile, which failed: {reason}")


class CompiledForward:
    """Calls a module's compiled code, or its own."""

    def __init__(self, module: nn.Module, failure: _Failure):
        self.module = module
        self.failure = failure
        self.eager = module.forward
        options = _OPTIONS if BACKEND == "inductor" else None
        self.compiled = torch.compile(module.forward, dynamic=True, backend=BACKEND, options=options)
        self.hooks = self._count_hooks()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failure.happened or self._count_hooks() != self.hooks:
            return self.eager(*args, **kwargs)
        try:
            # Weights become constants only where nobody wants gradients.
            with torch.no_grad():
                return self.compiled(*args, **kwargs)
        except Exception as e:
            # What the caller did wrong is wrong without compiling, too, and is raised again here.
            results = self.eager(*args, **kwargs)
            self.failure.report(e)
            return results

    def _count_hooks(self) -> int:
        inner = (x for x in self.module.modules() if x is not self.module)
        return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in inner)
