"""``torch.compile`` for inputs of any size, with a way back."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

BACKEND = "inductor"


def anywhere(module: nn.Module) -> bool:
    return True


@dataclass
class Compiler:
    """What the compiled modules of a model share: how they are compiled, and whether that failed."""

    doing: str
    """What goes on without compiled code where compiling failed: the first word of the warning."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the inductor."""
    context: Callable[[], AbstractContextManager] = nullcontext
    """Makes what the code is compiled, and runs, in."""
    serves: Callable[[nn.Module], bool] = anywhere
    """Whether a module, as it is at the moment, is to run compiled."""
    failures: type[Exception] = Exception
    """What, raised by compiled code, leads back to the module's own."""
    failed: bool = False
    functions: dict[Callable, Callable] = field(default_factory=dict, repr=False)
    """Compiled, by what they were: modules of one class share their code."""

    def compiled(self, function: Callable) -> Callable:
        if function not in self.functions:
            options = self.options if BACKEND == "inductor" else None
            self.functions[function] = torch.compile(function, dynamic=True, backend=BACKEND, options=options)
        return self.functions[function]

    def report(self, error: Exception) -> None:
        """Warn of the first failure."""
        if self.failed:
            return
        self.failed = True
        # The first line tells which part of PyTorch failed, the second what was wrong.
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:2]])
        logger.warning(f"{self.doing} without torch.compile, which failed: {reason}")

    def __getstate__(self) -> dict:
        # Compiled functions can't be pickled; a copy makes its own, of code that is there already.
        return {**vars(self), "functions": {}}


class CompiledForward:
    """In place of a module's ``forward``: its compiled code, made at the first call, or its own.

    One code serves all sizes of images; what differs in structure (one image or several, padded or not) is compiled
    when it is first met. Where compiling fails, a warning is logged once; what was not compiled until then goes on as
    it was. So does a module as long as somebody watches its parts through hooks, which compiled code would not call.

    The module's parameters keep their names; copies of a model are compiled as it is.
    """

    def __init__(self, module: nn.Module, compiler: Compiler):
        """
        Args:
            module: its ``forward`` is that of its class.
        """
        self.module = module
        self.compiler = compiler
        self.hooks = self._count_hooks()
        self.works: bool | None = None
        """None: nothing is known yet."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = type(self.module).forward
        if not self._serves():
            return own(self.module, *args, **kwargs)
        try:
            with self.compiler.context():
                results = self.compiler.compiled(own)(self.module, *args, **kwargs)
            self.works = True
        except self.compiler.failures as e:
            # What the caller did wrong is wrong without compiling, too, and is raised again here.
            results = own(self.module, *args, **kwargs)
            self.works = False
            self.compiler.report(e)
        return results

    def _serves(self) -> bool:
        # Somebody else compiles what contains this module.
        if torch.compiler.is_compiling():
            return False
        possible = not self.compiler.failed if self.works is None else self.works
        return possible and self.compiler.serves(self.module) and self._count_hooks() == self.hooks

    def _count_hooks(self) -> int:
        inner = (x for x in self.module.modules() if x is not self.module)
        return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in inner)
