"""Rewriting a foreign checkpoint under our names."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from detr_d2.checkpoint.architecture import describe_architecture, infer_architecture
from detr_d2.checkpoint.class_head import COCO_CLASSES, COCO_ID_ROWS, HEAD, head_rows
from detr_d2.checkpoint.comparison import compare, explain, group_names
from detr_d2.checkpoint.formats import NativeWeights, to_native
from detr_d2.checkpoint.reading import read_checkpoint
from detr_d2.checkpoint.writing import atomic_file
from detr_d2.config import add_detr_config
from detr_d2.errors import UserError


@dataclass(frozen=True)
class ConversionSummary:
    """What was converted to what; ``str()`` of it is for people."""

    source: str
    output: str
    format: str
    architecture: dict[str, Any]
    """Config keys of the model that the output fits."""
    num_tensors: int
    head: str
    """What became of the class head."""
    left_out: list[str]
    """Tensors, by their names in the source, that the output does not hold."""

    def __str__(self) -> str:
        defaults = _flatten(target_config({}))
        keys = [f"{key} {x}" for key, x in self.architecture.items() if x != defaults[key]]
        lines = [
            f"source:   {self.source} ({self.format})",
            f"model:    {describe_architecture(self.architecture)}",
            f"head:     {self.head}",
            f"left out: {group_names(self.left_out) or 'nothing'}",
            f"written:  {self.output}, {self.num_tensors} tensors; all names and shapes fit the model",
            f"config:   {' '.join(keys) or 'the defaults'} MODEL.WEIGHTS {self.output}",
        ]
        return "\n".join(lines)


def convert_checkpoint(
    source: str, output: str, *, num_classes: int | None = None, force: bool = False, trust: bool = False
) -> ConversionSummary:
    """Convert a checkpoint of a whole model, and write it once it is known to fit the model.

    Args:
        source: a file or URL in one of :data:`~detr_d2.checkpoint.formats.FORMATS`.
        output: the file to write; its folder is made if need be.
        num_classes: foreground classes of the model to be loaded. None keeps the head, but brings one over COCO's
            category ids (92 rows) to the 80 contiguous classes; 91 keeps that one too. A head that does not fit the
            number is left out.
        force: overwrite ``output``.
        trust: unpickle whatever ``source`` holds; see :func:`~detr_d2.checkpoint.reading.read_checkpoint`.

    Raises:
        UserError: ``source`` can't be read or is no DETR, or ``output`` can't be written; nothing is written then.
    """
    _check_output(output, force)
    checkpoint = read_checkpoint(source, trust=trust)
    weights = to_native(checkpoint, len(COCO_CLASSES) if num_classes is None else num_classes, source)
    if weights.format.backbone_only:
        raise UserError(
            f"{source} holds the weights of a backbone ({weights.format.name}), which need no conversion: "
            f"set MODEL.WEIGHTS {source}."
        )
    tensors, head = _fit_head(weights, num_classes)
    architecture = infer_architecture(tensors)
    if num_classes is not None:
        architecture["MODEL.DETR.NUM_CLASSES"] = num_classes
    _verify(tensors, architecture, source)
    content: dict[str, Any] = {"model": tensors}
    class_names = weights.class_names or checkpoint.get("class_names")
    if class_names and HEAD[0] in tensors:
        content["class_names"] = class_names
    _write(content, output)
    return ConversionSummary(source, output, weights.format.name, architecture, len(tensors), head, weights.left_out)


def target_config(architecture: dict[str, Any]) -> CfgNode:
    """The config of the model that a checkpoint fits, from the keys that its tensors tell."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Detr"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.merge_from_list([x for item in architecture.items() for x in item])
    hidden_dim = cfg.MODEL.DETR.HIDDEN_DIM
    # The number of heads changes no shape: any that divides the channels will do.
    cfg.MODEL.DETR.NHEADS = next(n for n in (cfg.MODEL.DETR.NHEADS, 4, 2, 1) if hidden_dim % n == 0)
    return cfg


def _fit_head(weights: NativeWeights, num_classes: int | None) -> tuple[dict[str, Tensor], str]:
    """The tensors to write, and what to say of the head."""
    rows = head_rows(weights.tensors)
    if rows is None:
        return weights.tensors, "the source holds none; it starts anew when the file is loaded for training"
    if weights.class_names is not None:
        return weights.tensors, f"{COCO_ID_ROWS} -> {rows} rows: COCO's classes in contiguous order, then no-object"
    if num_classes is None or rows - 1 == num_classes:
        return weights.tensors, f"{rows} rows kept: {rows - 1} classes, then no-object"
    tensors = {name: x for name, x in weights.tensors.items() if name not in HEAD}
    return tensors, (
        f"left out, for its {rows} rows don't fit {num_classes} classes; "
        "it starts anew when the file is loaded for training"
    )


def _verify(tensors: dict[str, Tensor], architecture: dict[str, Any], source: str) -> None:
    """Refuse tensors that are not exactly those of the model; a head that was left out is not missed."""
    if "MODEL.RESNETS.DEPTH" not in architecture:
        raise UserError(f"{source}: its backbone is no ResNet-18, 34, 50, 101 or 152. Only these can be converted.")
    model = build_model(target_config(architecture)).state_dict()
    if HEAD[0] not in tensors:
        model = {name: x for name, x in model.items() if name not in HEAD}
    if differences := compare(tensors, model):
        raise UserError(
            f"{source} is no complete DETR, or a variant of it: it does not fit the model that its shapes tell "
            f"({describe_architecture(architecture)}).\n{explain(differences, tensors, model)}"
        )


def _check_output(output: str, force: bool) -> None:
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: name the file to write.")
    if os.path.exists(output) and not force:
        raise UserError(f"{output} exists: choose another name, or overwrite it with --force (force=True).")


def _write(content: dict[str, Any], output: str) -> None:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        with atomic_file(output) as file:
            torch.save(content, file)
    # torch reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as e:
        raise UserError(f"{output} can't be written ({e}): check the folder and the space left. Nothing stays.") from e


def _flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in cfg.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value})
    return flat
