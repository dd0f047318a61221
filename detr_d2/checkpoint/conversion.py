"""Conversion of a checkpoint to the native format, the original's, or that of the transformers library."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, BinaryIO

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from detr_d2.checkpoint import huggingface
from detr_d2.checkpoint.architecture import compare, describe_architecture, explain, group_names, infer_architecture
from detr_d2.checkpoint.class_head import HEAD, coco_head_by_ids, coco_head_contiguous, coco_names, head_rows
from detr_d2.checkpoint.formats import EXPORTS, NativeWeights, from_native, has_mask_head, to_native
from detr_d2.checkpoint.key_maps import ORIGINAL_SEGMENTATION
from detr_d2.checkpoint.reading import SAFETENSORS, import_safetensors, local_path, read_checkpoint
from detr_d2.config import add_detr_config
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

TARGETS = ("d2", *EXPORTS)
"""The formats that can be written."""
_HUGGINGFACE_FILES = (f"model{SAFETENSORS}", "pytorch_model.bin")
_NEW_HEAD = "it is initialized when the file is loaded for training"


@dataclass(frozen=True)
class ConversionSummary:
    """Source, output and content of a conversion; ``str()`` formats it for users."""

    source: str
    output: str
    format: str
    architecture: dict[str, Any]  # Config keys of the model that the output fits.
    num_tensors: int
    head: str
    left_out: list[str]  # Names in the source of the tensors that the output does not hold.
    usage: str  # Instructions for loading the output in other programs; empty for the native format.

    def __str__(self) -> str:
        defaults = target_config({})
        keys = [f"{key} {x}" for key, x in self.architecture.items() if x != attrgetter(key)(defaults)]
        lines = [
            f"source:   {self.source} ({self.format})",
            f"model:    {describe_architecture(self.architecture)}",
            f"head:     {self.head}",
            f"left out: {group_names(self.left_out) or 'nothing'}",
            f"written:  {self.output}, {self.num_tensors} tensors; all names and shapes fit the model",
            f"config:   {' '.join(keys) or 'the defaults'} MODEL.WEIGHTS {self.output}",
        ]
        return "\n".join(lines + ([f"load:     {self.usage}"] if self.usage else []))


def convert_checkpoint(
    source: str,
    output: str,
    *,
    to: str = "d2",
    num_classes: int | None = None,
    coco_ids: bool = False,
    settings: dict[str, Any] | None = None,
    force: bool = False,
    trust: bool = False,
) -> ConversionSummary:
    """Convert a checkpoint of a whole model, and write it once it is known to fit the model.

    Args:
        source: a file or URL in one of :data:`~detr_d2.checkpoint.formats.FORMATS`.
        output: the file to write; its folder is created if need be.
        to: one of :data:`TARGETS`, of which "d2" is the native format.
        num_classes: foreground classes of the model to be loaded. None keeps the head, except that "d2" converts one
            over COCO's category ids to contiguous classes: 92 rows to 80 things, 251 to 80 things and 53 stuff; 91 or
            250 keep these too. A head that does not fit the number is left out of "d2", and an error for the others.
        coco_ids: True to convert a head over COCO's contiguous classes, 80 or 133, to the 92 or 251 rows by category id
            that the published models have. Not for "d2".
        settings: config keys that no tensor reveals and that the source may not report either: MODEL.DETR.NHEADS,
            MODEL.RESNETS.RES5_DILATION.
        force: True to overwrite ``output``.
        trust: True to unpickle anything; see :func:`~detr_d2.checkpoint.reading.read_checkpoint`.

    Raises:
        UserError: ``source`` can't be read or is not a DETR, or ``output`` can't be written; nothing is written then.
    """
    _check_output(output, to, force)
    checkpoint = read_checkpoint(source, trust=trust)
    weights = to_native(checkpoint, num_classes, source, contiguous=to == "d2" and num_classes is None)
    if weights.format.backbone_only:
        raise UserError(
            f"{source} holds the weights of a backbone ({weights.format.name}), which need no conversion: "
            f"set MODEL.WEIGHTS {source}."
        )
    config = huggingface.read_config(local_path(source)) if weights.format.splits_in_proj else {}
    labels = _labels(weights, checkpoint, config)
    tensors, head = _select_head(weights, num_classes)
    reported = {**huggingface.read_settings(config), **_original_settings(checkpoint)}
    architecture = {**infer_architecture(tensors), **weights.format.implies, **reported, **(settings or {})}
    if num_classes is not None:
        architecture["MODEL.DETR.NUM_CLASSES"] = num_classes
    _check_settings(architecture, to, source)
    _check_tensors(tensors, architecture, source)
    if to != "d2" and HEAD[0] not in tensors:
        raise UserError(f"{source}: {head}. Only --to d2 can do without a class head.")
    if coco_ids:
        tensors, labels, head = _spread_head(tensors, labels, to, source)
        architecture["MODEL.DETR.NUM_CLASSES"] = head_rows(tensors) - 1
    labels = labels if HEAD[0] in tensors else None
    usage = write_checkpoint(tensors, output, to, architecture=architecture, labels=labels)
    return ConversionSummary(
        source, output, weights.format.name, architecture, len(tensors), head, weights.left_out, usage
    )


def target_config(architecture: dict[str, Any]) -> CfgNode:
    """Return the config of the model that a checkpoint fits, from the keys that its tensors reveal."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Detr"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.merge_from_list([x for item in architecture.items() for x in item])
    if cfg.INPUT.CHANNELS != 3:
        # The file does not hold them.
        cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0] * cfg.INPUT.CHANNELS
    hidden_dim = cfg.MODEL.DETR.HIDDEN_DIM
    # The number of heads changes no shape: any that divides the channels will do.
    cfg.MODEL.DETR.NHEADS = next(n for n in (cfg.MODEL.DETR.NHEADS, 4, 2, 1) if hidden_dim % n == 0)
    return cfg


def _select_head(weights: NativeWeights, num_classes: int | None) -> tuple[dict[str, Tensor], str]:
    """Return the tensors to write, and the summary's line on the head."""
    rows = head_rows(weights.tensors)
    if rows is None:
        return weights.tensors, f"the source holds none; {_NEW_HEAD}"
    if weights.class_names is not None:
        by_id = coco_head_contiguous(rows).num_id_rows
        return weights.tensors, f"{by_id} -> {rows} rows: COCO's classes in contiguous order, then no-object"
    if num_classes is None or rows - 1 == num_classes:
        return weights.tensors, f"{rows} rows kept: {rows - 1} classes, then no-object"
    tensors = {name: x for name, x in weights.tensors.items() if name not in HEAD}
    return tensors, f"left out, for its {rows} rows don't fit {num_classes} classes; {_NEW_HEAD}"


def _spread_head(
    tensors: dict[str, Tensor], labels: list[str | None] | None, to: str, source: str
) -> tuple[dict[str, Tensor], list[str | None], str]:
    """Return the tensors with a head over COCO's category ids, its labels, and the summary's line on it."""
    rows = head_rows(tensors)
    if to == "d2":
        raise UserError("--coco-ids is for --to original and --to huggingface: native heads have contiguous classes.")
    is_coco = labels is None or labels == coco_names(rows)
    if is_coco and coco_head_by_ids(rows):
        return tensors, coco_names(rows), f"{rows} rows kept: COCO's category ids, then no-object"
    coco = coco_head_contiguous(rows)
    if coco is None or not is_coco:
        raise UserError(f"{source}: its head of {rows} rows is not over COCO's 80 classes. Leave out --coco-ids.")
    head = f"{rows} -> {coco.num_id_rows} rows: COCO's category ids, then no-object; unused rows are never predicted"
    return coco.to_ids(tensors), coco.names_by_id, head


def _labels(weights: NativeWeights, checkpoint: dict[str, Any], config: dict[str, Any]) -> list[str | None] | None:
    """Return the class names by row of the head, without no-object; None if they are not known."""
    rows = head_rows(weights.tensors)
    if rows is None or weights.class_names is not None:
        return weights.class_names
    names = huggingface.read_labels(config, rows - 1) or checkpoint.get("class_names")
    if names is None and weights.format.has_coco_ids and coco_head_by_ids(rows):
        return coco_names(rows)
    return list(names) if names is not None and len(names) == rows - 1 else None


def _original_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the config keys in the options of the original's training run."""
    args = checkpoint.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else {}
    return huggingface.read_settings({**options, "encoder_attention_heads": options.get("nheads")})


def _check_settings(architecture: dict[str, Any], to: str, source: str) -> None:
    """Raise if settings that no tensor reveals contradict the tensors."""
    hidden_dim = architecture.get("MODEL.DETR.HIDDEN_DIM", 0)
    heads = architecture.get("MODEL.DETR.NHEADS", huggingface.DEFAULT_HEADS if to == "huggingface" else 1)
    if hidden_dim % heads:
        raise UserError(f"{source}: {heads} attention heads do not divide {hidden_dim} channels. Set --nheads.")
    if architecture.get("MODEL.RESNETS.RES5_DILATION") == 2 and architecture.get("MODEL.RESNETS.DEPTH") in (18, 34):
        raise UserError(f"{source}: DC5 models have a ResNet-50 or deeper; leave out --dc5.")


def _check_tensors(tensors: dict[str, Tensor], architecture: dict[str, Any], source: str) -> None:
    """Raise if the tensors are not exactly those of the model; a head that was left out may be missing."""
    if "MODEL.RESNETS.DEPTH" not in architecture:
        raise UserError(f"{source}: its backbone is not a ResNet-18, 34, 50, 101 or 152. Only these can be converted.")
    model = build_model(target_config(architecture)).state_dict()
    if HEAD[0] not in tensors:
        model = {name: x for name, x in model.items() if name not in HEAD}
    differences = compare(tensors, model)
    if any(differences):
        raise UserError(
            f"{source} is not a complete DETR, or a variant of it: it does not fit the model that its shapes belong to "
            f"({describe_architecture(architecture)}).\n{explain(differences, tensors, model)}"
        )


def _check_output(output: str, to: str, force: bool) -> None:
    """Raise if the output can't be written, or exists and ``force`` is False."""
    if to not in TARGETS:
        raise UserError(f"--to {to!r} is not a format: choose one of {', '.join(TARGETS)}.")
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: name the file to write.")
    if output.endswith(SAFETENSORS):
        if to != "huggingface":
            raise UserError(f"{output}: safetensors files are written with --to huggingface only. Name a .pth file.")
        import_safetensors(output)
    for path in [output, huggingface.config_path(output)] if to == "huggingface" else [output]:
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
    """Write ``tensors``, under native names, in the format ``to``, and return instructions for loading the file.

    For "huggingface", a config.json is written to the same folder.

    Args:
        architecture: config keys and values of the model.
        labels: class names by row of the head, without no-object; None for an unused row.

    Raises:
        UserError: the format has no such model, or the file can't be written; nothing is written then.
    """
    if to == "d2":
        named = labels is not None and None not in labels
        _write({output: {"model": tensors, **({"class_names": list(labels)} if named else {})}})
        return ""
    if to == "original":
        target = ORIGINAL_SEGMENTATION if has_mask_head(tensors) else EXPORTS[to]
        _write({output: {"model": from_native(tensors, target)}})
        return "main.py --resume FILE in the original's repository, with the options that make this model"
    config = huggingface.make_config(architecture, labels)
    foreign = from_native(tensors, EXPORTS[to])
    _write({output: {**foreign, **huggingface.release_4_names(foreign)}, huggingface.config_path(output): config})
    folder, name = os.path.split(output)
    rename = "" if name in _HUGGINGFACE_FILES else f", once the file is called {' or '.join(_HUGGINGFACE_FILES)}"
    return f"{config['architectures'][0]}.from_pretrained({folder or '.'!r}), with timm installed{rename}"


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
        raise UserError(
            f"{path} can't be written ({e}): check the folder and the space left. No partial files were left behind."
        ) from e


def _save(content: dict[str, Any], path: str, file: BinaryIO) -> None:
    if path.endswith(SAFETENSORS):
        tensors = {name: x.contiguous() for name, x in content.items()}
        file.write(import_safetensors(path).save(tensors, metadata={"format": "pt"}))
    elif path == huggingface.config_path(path):
        file.write((json.dumps(content, indent=2) + "\n").encode())
    else:
        torch.save(content, file)
