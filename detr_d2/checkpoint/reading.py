"""Reading of checkpoint files without executing anything that they contain.

A pickle is a program: it imports what it names, calls it, and sets attributes on the result. :class:`Unpickler` imports
only what :data:`_ALLOWED` lists, which builds tensors, arrays and plain containers, and sets the state of a few types
only. With :func:`load` it makes this module one for ``torch.load(pickle_module=...)``, so torch files of every version
and plain pickles are read in one way.

``torch.load(weights_only=True)`` can't replace it. It reads no plain pickles, such as Detectron2's model zoo ("Invalid
magic number", and for protocol 4 "Unsupported operand 149"). Before release 2.5 it has no ``add_safe_globals`` and
refuses what original DETR checkpoints hold: argparse.Namespace, collections.Counter, arrays and scalars of numpy.
"""

import argparse
import collections
import importlib
import io
import os
import pickle
import sys
import tarfile
import warnings
import zipfile
from types import ModuleType
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from detr_d2.utils.errors import UserError

SAFETENSORS = ".safetensors"
_ZIP_START = b"PK\x03\x04"
# The first of several pickles in a file of torch before 1.6. A plain pickle has one.
_LEGACY_TORCH_START = 0x1950A86A20F9469CFC6C


def read_checkpoint(path: str, *, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint: a torch file of any version, a pickle as in Detectron2's model zoo, or a safetensors file.

    Args:
        path: a file, or a URL that Detectron2's PathManager supports; downloads are cached, with a progress bar.
        trust: True to unpickle anything. This can run any code: only for files of known origin.

    Returns:
        The contents of the file, tensors on the CPU.

    Raises:
        UserError: the file is missing, truncated or not a checkpoint, or needs ``trust`` or a package.
    """
    local = local_path(path)
    name = path if local == path else f"{path} (downloaded to {local})"
    try:
        if _is_safetensors(local):
            return import_safetensors(name).load_file(local)
        checkpoint = _load(local, pickle if trust else sys.modules[__name__])
    except UserError:
        raise
    except ForbiddenGlobal as e:
        raise UserError(
            f"{name} holds more than weights and plain values: reading it needs {e.name}, which may run any code. "
            "If you know where the file comes from, convert it once with `detr-d2 convert --input "
            f"{path} --output FILE --trust` (from Python: read_checkpoint(path, trust=True))."
        ) from e
    # A damaged pickle or archive can raise anything.
    except Exception as e:
        raise UserError(
            f"{name} can't be read as a checkpoint: it is truncated, damaged or of another kind. Copy or download it "
            f"again, after deleting this one. ({type(e).__name__}: {str(e)[:200]})"
        ) from e
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"{name} holds a {type(checkpoint).__name__}, not a dict: save a state dict, as "
            "torch.save({'model': model.state_dict()}, path) does."
        )
    return checkpoint


def local_path(path: str) -> str:
    """Return the path of a file, or of the local copy of a URL. If there is no such file, raise a UserError."""
    try:
        local = PathManager.get_local_path(path)
    except Exception as e:  # every handler of PathManager has its own errors
        raise UserError(
            f"{path} can't be downloaded ({type(e).__name__}: {e}): check the address and the connection, or name a "
            "local file."
        ) from e
    if not os.path.exists(local):
        raise UserError(
            f"{path} does not exist: check the path (MODEL.WEIGHTS, MODEL.DETR.FROZEN_WEIGHTS, or --input of "
            "`detr-d2 convert`)."
        )
    if os.path.isdir(local):
        raise UserError(f"{path} is a folder: name the checkpoint file in it.")
    if os.path.getsize(local) == 0:
        raise UserError(f"{path} is empty: copy or download it again.")
    return local


def import_safetensors(path: str) -> ModuleType:
    """Return the module ``safetensors.torch``, needed for ``path``. If it is not installed, raise a UserError."""
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as e:
        raise UserError(f"{path} is a safetensors file, which requires a package: pip install safetensors") from e


def allow_original_checkpoints() -> None:
    """Allow ``torch.load(weights_only=True)``, which DefaultPredictor calls, to read the original's files.

    They hold the ``argparse.Namespace`` of a training run. Before torch 2.5 there is no list to add it to.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def _is_safetensors(path: str) -> bool:
    # No pickle and no archive begins with the length of a JSON object, and that object.
    with open(path, "rb") as file:
        start = file.read(9)
    is_json = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= os.path.getsize(path)
    return is_json or path.endswith(SAFETENSORS)


def _load(path: str, pickle_module: ModuleType) -> Any:
    with open(path, "rb") as file:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            _check_archive(path)
            return _load_torch(path, pickle_module)
        file.seek(0)
        first = pickle_module.load(file, encoding="latin1")
    if not (isinstance(first, int) and first == _LEGACY_TORCH_START):
        return first
    # A file can be both; torch would unpack it as one of its oldest archives.
    if tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("a tar archive")
    return _load_torch(path, pickle_module)


def _check_archive(path: str) -> None:
    """Refuse an archive that would unpack to more than its size: torch neither compresses nor shares bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # Code in TorchScript's archives is compressed. They are refused later.
        is_script = any(x.filename.endswith("/constants.pkl") for x in entries)
        if not is_script and sum(x.file_size for x in entries) > os.path.getsize(path):
            raise pickle.UnpicklingError("an archive that unpacks to more than its size")


def _load_torch(path: str, pickle_module: ModuleType) -> Any:
    with warnings.catch_warnings():
        # After this warning torch.load calls torch.jit.load, which ignores the pickle module.
        warnings.filterwarnings("error", message=".*TorchScript archive")
        return torch.load(path, map_location="cpu", pickle_module=pickle_module, weights_only=False)


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
    """Reader of one object, which raises :class:`ForbiddenGlobal` if the pickle requires more than data."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if allowed := _ALLOWED.get(f"{module}.{name}"):
            return allowed
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
    """Read one object from ``file``, which is then positioned behind it; arguments as for ``pickle.load``."""
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
