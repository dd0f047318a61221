"""``torch.compile`` for training and for inference, for images of any size, with fallback to eager.

``nn.Module.compile`` is not enough: it fails where compiling fails, its compiled code skips hooks that are registered
later, and a module can't return to eager, for example in evaluation mode.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
import torch.fx.experimental._config
from detectron2.utils.env import TORCH_VERSION
from torch import nn

from detr_d2.modeling.activation_checkpoints import repeated_modules

logger = logging.getLogger(__name__)

BACKEND = "inductor"

# Weights become constants of the code: packed for the processor, activations fused.
_INFERENCE_OPTIONS = {"freezing": True}
# PyTorch 2.3 splits the model into one piece per layer, each compiled by itself.
_MIN_INFERENCE_VERSION = (2, 4)

_COMPILE_BACKWARD_FIRST = "force_non_lazy_backward_lowering"
_TRAINING_OPTIONS = {
    # A backward pass that can't be compiled fails early enough to fall back.
    _COMPILE_BACKWARD_FIRST: True,
    # Gradients are computed outside of autocast, as without compiling.
    "backward_pass_autocast": "off",
}


def compile_for_inference(modules: Sequence[nn.Module]) -> bool:
    """Replace each module's ``forward`` by compiled code, in place; see :class:`CompiledForward`.

    The modules are in evaluation mode and have their final weights. If this version of PyTorch does not support it, log
    a warning, change nothing and return False.
    """
    if TORCH_VERSION < _MIN_INFERENCE_VERSION:
        needed, installed = (".".join(map(str, x)) for x in (_MIN_INFERENCE_VERSION, TORCH_VERSION))
        logger.warning(f"Predicting without torch.compile, which needs PyTorch {needed} or later; this is {installed}.")
        return False
    compiler = Compiler("Predicting", _INFERENCE_OPTIONS, _inference_settings)
    for module in modules:
        module.forward = CompiledForward(module, compiler)
    return True


def compile_for_training(transformer: nn.Module) -> bool:
    """Compile the layers of ``transformer`` for training, in place; see :class:`CompiledForward`.

    Layers of one class share their code: six take no longer to compile than one, and processes can exchange the
    gradients of one layer while those of the next are computed. The rest of the transformer, and layers in evaluation
    mode, run without compiling. Call this before
    :func:`~detr_d2.modeling.activation_checkpoints.checkpoint_activations`, which then runs compiled layers again. If
    this version of PyTorch does not support it, log a warning, change nothing and return False.
    """
    if not can_compile_training():
        installed = ".".join(map(str, TORCH_VERSION))
        logger.warning(f"Training without torch.compile, which needs a later version of PyTorch; this is {installed}.")
        return False
    compiler = Compiler("Training", {}, _training_settings, _is_trained, torch._dynamo.exc.TorchDynamoException)
    layers = list(repeated_modules(transformer))
    for layer in layers:
        layer.forward = CompiledForward(layer, compiler)
    logger.info(f"Training with torch.compile: {len(layers)} layers, which are compiled in the first iterations.")
    return True


def can_compile_training() -> bool:
    """Check that PyTorch can compile the backward pass together with the forward pass."""
    return hasattr(torch._functorch.config, _COMPILE_BACKWARD_FIRST)


def _is_trained(layer: nn.Module) -> bool:
    return layer.training and torch.is_grad_enabled()


@contextmanager
def _inference_settings() -> Iterator[None]:
    # Weights become constants only without gradients.
    with torch.no_grad(), _independent_sizes():
        yield


def _independent_sizes() -> AbstractContextManager:
    """Return a context in which sizes that are equal in the first batch may differ in others, where PyTorch can.

    Otherwise code specialized for square inputs cannot be reused for others, and code for two images, whose sizes are a
    (2, 2) tensor, cannot be reused for other numbers of images.
    """
    config = torch.fx.experimental._config
    return config.patch(use_duck_shape=False) if hasattr(config, "use_duck_shape") else nullcontext()


@contextmanager
def _training_settings() -> Iterator[None]:
    with (
        # Otherwise code is cut within a layer, where a bucket of gradients ends that processes exchange together.
        torch._dynamo.config.patch(optimize_ddp=False),
        _independent_sizes(),
        torch._functorch.config.patch(_TRAINING_OPTIONS),
    ):
        yield


def _always(module: nn.Module) -> bool:
    return True


@dataclass
class Compiler:
    """Settings of the compilation and its state, which the compiled modules of a model share."""

    activity: str  # Activity that continues without compiled code: first word of the warning about a failure.
    options: dict[str, Any] = field(default_factory=dict)  # Options of the inductor.
    context: Callable[[], AbstractContextManager] = nullcontext  # Context in which the code is compiled and runs.
    applies: Callable[[nn.Module], bool] = _always  # True if a module, in its current mode, is to run compiled.
    failures: type[Exception] = Exception  # Exceptions of compiled code after which the module runs in eager.
    failed: bool = False
    # Compiled functions by their originals: modules of one class share their code.
    functions: dict[Callable, Callable] = field(default_factory=dict, repr=False)

    def compiled(self, function: Callable) -> Callable:
        """Return ``function`` compiled."""
        if function not in self.functions:
            options = self.options if BACKEND == "inductor" else None
            self.functions[function] = torch.compile(function, dynamic=True, backend=BACKEND, options=options)
        return self.functions[function]

    def report(self, error: Exception) -> None:
        """Warn of the first failure."""
        if self.failed:
            return
        self.failed = True
        # The first line names the part of PyTorch that failed, the second the reason.
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:2]])
        logger.warning(f"{self.activity} without torch.compile, which failed: {reason}")

    def __getstate__(self) -> dict:
        # Compiled functions can't be pickled; a copy compiles again.
        return {**vars(self), "functions": {}}


class CompiledForward:
    """Replacement of a module's ``forward``: compiled code, compiled at the first call, or eager.

    The same code is used for all sizes of images; differences of structure (one image or several, padded or not) are
    compiled when they first occur. Where compiling fails, a warning is logged once, and modules that are not compiled
    yet run in eager. So does a module while hooks are registered on its children, which compiled code would not call.

    The module's parameters keep their names; copies of a model are compiled as it is. Its ``forward`` must be that of
    its class.
    """

    def __init__(self, module: nn.Module, compiler: Compiler):
        self.module = module
        self.compiler = compiler
        self.hooks = self._count_hooks()
        self.works: bool | None = None
        """None: not tried yet."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        own = type(self.module).forward
        if not self._applies():
            return own(self.module, *args, **kwargs)
        try:
            with self.compiler.context():
                results = self.compiler.compiled(own)(self.module, *args, **kwargs)
            self.works = True
        except self.compiler.failures as e:
            # A mistake of the caller is one without compiling, too, and is raised again here.
            results = own(self.module, *args, **kwargs)
            self.works = False
            self.compiler.report(e)
        return results

    def _applies(self) -> bool:
        # The caller compiles a module that contains this one.
        if torch.compiler.is_compiling():
            return False
        possible = not self.compiler.failed if self.works is None else self.works
        return possible and self.compiler.applies(self.module) and self._count_hooks() == self.hooks

    def _count_hooks(self) -> int:
        inner = (x for x in self.module.modules() if x is not self.module)
        return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in inner)
