"""Writing a checkpoint: ours, the original's, and that of the transformers library."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import torch
from torch import Tensor

from detr_d2.checkpoint.formats import EXPORTS, MASK_EXPORTS, from_native, is_of_mask_head
from detr_d2.checkpoint.huggingface import CONFIG_NAME, make_config, release_4_names
from detr_d2.checkpoint.reading import SAFETENSORS, import_safetensors
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

TARGETS = ("d2", *EXPORTS)
"""The formats that can be written."""
_HUGGINGFACE_FILES = (f"model{SAFETENSORS}", "pytorch_model.bin")


def check_output(output: str, to: str, force: bool) -> None:
    """Refuse an output that can't be written, or exists and is not to be overwritten.

    Raises:
        UserError: says what to do.
    """
    if to not in TARGETS:
        raise UserError(f"--to {to!r} is no format: choose one of {', '.join(TARGETS)}.")
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: name the file to write.")
    if output.endswith(SAFETENSORS):
        if to != "huggingface":
            raise UserError(f"{output}: safetensors files are written with --to huggingface only. Name a .pth file.")
        import_safetensors(output)
    paths = [output, _config_path(output)] if to == "huggingface" else [output]
    for path in paths:
        if os.path.exists(path) and not force:
            raise UserError(f"{path} exists: choose another name, or overwrite it with --force (force=True).")


def write_checkpoint(
    tensors: dict[str, Tensor],
    output: str,
    to: str,
    *,
    architecture: Mapping[str, Any],
    labels: Sequence[str | None] | None,
) -> str:
    """Write ``tensors``, under our names, and what goes with them.

    Args:
        tensors: a state dict of our model.
        output: the file; for "huggingface", a config.json is written beside it.
        to: one of :data:`TARGETS`.
        architecture: config keys and values of the model.
        labels: class names by row of the head, without no-object; None for a row that is no class.

    Returns:
        How to load the file, for people.

    Raises:
        UserError: the format has no such model, or the file can't be written; nothing is written then.
    """
    if to == "d2":
        named = labels is not None and None not in labels
        _write({output: {"model": tensors, **({"class_names": list(labels)} if named else {})}})
        return ""
    config = make_config(architecture, labels) if to == "huggingface" else {}
    formats = {**EXPORTS, **MASK_EXPORTS} if any(is_of_mask_head(name) for name in tensors) else EXPORTS
    foreign = from_native(tensors, formats[to])
    if to == "original":
        _write({output: {"model": foreign}})
        return "main.py --resume FILE in the original's repository, with the options that make this model"
    _write({output: {**foreign, **release_4_names(foreign)}, _config_path(output): config})
    folder, name = os.path.split(output)
    rename = "" if name in _HUGGINGFACE_FILES else f", once the file is called {' or '.join(_HUGGINGFACE_FILES)}"
    return f"{config['architectures'][0]}.from_pretrained({folder or '.'!r}), with timm installed{rename}"


def _config_path(output: str) -> str:
    return os.path.join(os.path.dirname(output), CONFIG_NAME)


def _write(contents: Mapping[str, Any]) -> None:
    """Write all files or none, each in the form that its name implies."""
    try:
        with ExitStack() as files:
            for path, content in contents.items():
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
                _save(content, path, files.enter_context(atomic_file(path)))
    # torch reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as e:
        path = next(iter(contents))
        raise UserError(f"{path} can't be written ({e}): check the folder and the space left. Nothing stays.") from e


def _save(content: dict[str, Any], path: str, file: BinaryIO) -> None:
    if path.endswith(SAFETENSORS):
        tensors = {name: x.contiguous() for name, x in content.items()}
        file.write(import_safetensors(path).save(tensors, metadata={"format": "pt"}))
    elif os.path.basename(path) == CONFIG_NAME:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    else:
        torch.save(content, file)
