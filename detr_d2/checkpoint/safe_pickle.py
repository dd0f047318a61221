"""Unpickling that can build tensors, arrays and plain containers, and nothing else.

A pickle is a program: it imports what it names, calls it, and sets attributes on the result. :class:`Unpickler`
imports only what :data:`_ALLOWED` lists, and sets the state of a few types only. The module has the two names that
``torch.load(pickle_module=...)`` requires, so torch files of every version and plain pickles are read in one way.

``torch.load(weights_only=True)`` can't replace it. It reads no plain pickles, such as Detectron2's model zoo ("Invalid
magic number", and for protocol 4 "Unsupported operand 149"). Before release 2.5 it has no ``add_safe_globals`` and
refuses what original DETR checkpoints hold: argparse.Namespace, collections.Counter, arrays and scalars of numpy.
"""

import argparse
import collections
import io
import pickle
import sys
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

# Numbers only. An array of objects whose bytes come from a file would be pointers that come from a file.
_NUMBER_KINDS = "biufc"


class ForbiddenGlobal(pickle.UnpicklingError):
    """The pickle requires something that may run code. ``name`` is its dotted name."""

    def __init__(self, name: str):
        super().__init__(f"{name} is not allowed")
        self.name = name


def _encode(text: str, encoding: str) -> bytes:
    # Pickles of protocol 2 and below hold bytes as text in this one encoding.
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenGlobal(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _dtype(name: str, *_: Any) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.kind not in _NUMBER_KINDS:
        raise ForbiddenGlobal(f"numpy.dtype({dtype.str!r})")
    return dtype


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0, np.int8)


def _array_from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(buffer, _dtype(dtype)).reshape(shape, order=order)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, _dtype(dtype))[0]


def _tensor_storage(data: bytes) -> Any:
    # A tensor in a plain pickle is a torch file in a byte string.
    return torch.load(io.BytesIO(data), map_location="cpu", pickle_module=sys.modules[__name__], weights_only=False)


class _ArrayType:
    """Placeholder for ``numpy.ndarray``, which pickles only pass around."""


_ALLOWED: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": collections.Counter,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": _encode,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _tensor_storage,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _ArrayType,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _empty_array
    _ALLOWED[f"{_core}.multiarray.scalar"] = _numpy_scalar
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _array_from_buffer


# The C unpickler has no hook for setting state, through which a pickle can change what it was allowed to import.
class Unpickler(pickle._Unpickler):
    """Reader of one object.

    Raises:
        ForbiddenGlobal: the pickle requires more than data.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if found := _ALLOWED.get(f"{module}.{name}"):
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise ForbiddenGlobal(f"{module}.{name}")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) in (argparse.Namespace, collections.OrderedDict) and isinstance(state, dict):
            vars(target).update(state)
        elif _is_numeric(target, state):
            target.__setstate__(state)
        else:
            raise ForbiddenGlobal(f"the state of a {type(target).__module__}.{type(target).__qualname__}")

    def load_binpersid(self) -> None:
        # torch's other persistent objects are pickled modules, whose source it compares and may write to disk.
        saved_id = self.stack[-1]
        if not (isinstance(saved_id, tuple) and saved_id and saved_id[0] in ("storage", b"storage")):
            raise ForbiddenGlobal("a persistent object that is not a tensor's storage")
        super().load_binpersid()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid


def load(file: BinaryIO, **kwargs: Any) -> Any:
    """Read one object from ``file``, which is left behind its end; arguments as for ``pickle.load``."""
    return Unpickler(file, **kwargs).load()


def _is_numeric(target: Any, state: Any) -> bool:
    """Check that ``target`` is an array or a type, and that ``state`` makes it one of numbers."""
    match target, state:
        # Version, shape, type, whether in Fortran's order, data.
        case np.ndarray(), (int(), tuple(), np.dtype() as dtype, bool() | int(), bytes() | str()):
            return dtype.kind in _NUMBER_KINDS
        # Version, byte order; no subarray, names, fields; size and alignment of the type itself; no flags.
        case np.dtype(), (int(), "<" | ">" | "|" | "=", None, None, None, -1, -1, 0):
            return True
    return False
