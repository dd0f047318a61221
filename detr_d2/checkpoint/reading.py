"""Reading of checkpoint files without executing anything that they contain."""

import argparse
import importlib
import os
import pickle
import tarfile
import warnings
from types import ModuleType
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from detr_d2.checkpoint import safe_pickle
from detr_d2.utils.errors import UserError

SAFETENSORS = ".safetensors"
_ZIP_START = b"PK\x03\x04"
# The first of several pickles in a file of torch before 1.6. A plain pickle has one.
_LEGACY_TORCH_START = 0x1950A86A20F9469CFC6C


def read_checkpoint(path: str, *, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint: a torch file of any version, a pickle as in Detectron2's model zoo, or a safetensors file.

    Args:
        path: a file, or a URL that Detectron2's PathManager supports; downloads are cached, with a progress bar.
        trust: unpickle whatever the file holds. This can run any code: only for files of known origin.

    Returns:
        The contents of the file, tensors on the CPU.

    Raises:
        UserError: the file is missing, truncated, no checkpoint, or needs ``trust`` or a package.
    """
    local = local_path(path)
    name = path if local == path else f"{path} (downloaded to {local})"
    try:
        if _is_safetensors(local):
            return import_safetensors(name).load_file(local)
        checkpoint = _load(local, pickle if trust else safe_pickle)
    except UserError:
        raise
    except safe_pickle.ForbiddenGlobal as e:
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
    """Return the local copy of a file or URL, downloaded if need be.

    Raises:
        UserError: there is no such file, or it can't be downloaded.
    """
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
    """Return the module ``safetensors.torch``, for reading or writing ``path``.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as e:
        raise UserError(f"{path} is a safetensors file, which requires a package: pip install safetensors") from e


def allow_original_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, which DefaultPredictor calls, read the original's files.

    They hold the ``argparse.Namespace`` of a training run. Before torch 2.5 there is no list to add to.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def _is_safetensors(path: str) -> bool:
    if path.endswith(SAFETENSORS):
        return True
    # No pickle and no archive begins with the length of a JSON object, and that object.
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= os.path.getsize(path)


def _load(path: str, pickle_module: ModuleType) -> Any:
    with open(path, "rb") as file:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            return _load_torch(path, pickle_module)
        file.seek(0)
        first = pickle_module.load(file, encoding="latin1")
    if not (isinstance(first, int) and first == _LEGACY_TORCH_START):
        return first
    # A file can be both; torch would unpack it as one of its oldest archives.
    if tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("a tar archive")
    return _load_torch(path, pickle_module)


def _load_torch(path: str, pickle_module: ModuleType) -> Any:
    with warnings.catch_warnings():
        # After this warning torch.load calls torch.jit.load, which ignores the pickle module.
        warnings.filterwarnings("error", message=".*TorchScript archive")
        return torch.load(path, map_location="cpu", pickle_module=pickle_module, weights_only=False)
