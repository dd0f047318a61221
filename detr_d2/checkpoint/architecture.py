"""What a state dict tells about the model that it belongs to."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from detr_d2.checkpoint.class_head import head_rows
from detr_d2.checkpoint.key_maps.resnet import BACKBONE

# Blocks a stage, and whether they are bottlenecks, of the ResNets that Detectron2 builds.
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def infer_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config keys and the values that ``tensors``, under our names, were made with.

    Keys that the tensors say nothing about are absent: dilation and dropout change no shape, and the number of heads
    only that of SMCA's and the mask head's tensors.
    """
    return {**_transformer(tensors), **_resnet(tensors), **_masks(tensors)}


def describe_architecture(architecture: Mapping[str, Any]) -> str:
    """A line for people, such as "R50, 6 + 6 layers, hidden 256, 100 queries, 80 classes"."""
    detr = {key.rpartition(".")[2]: value for key, value in architecture.items()}
    family = [describe_family(architecture)] if "DYNAMIC_SCALE" in detr else []
    parts = [
        ("DEPTH", "R{}"),
        ("ENC_LAYERS", "{} encoder layers"),
        ("DEC_LAYERS", "{} decoder layers"),
        ("HIDDEN_DIM", "hidden dimension {}"),
        ("NUM_OBJECT_QUERIES", "{} queries"),
        ("NUM_CLASSES", "{} classes"),
        ("POSITION_EMBEDDING", "{} position embedding"),
    ]
    text = [form.format(detr[key]) for key, form in parts if key in detr]
    return ", ".join(
        family + text + (["pre-norm"] if detr.get("PRE_NORM") else []) + (["masks"] if detr.get("MASK_ON") else [])
    )


def _transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (rows := head_rows(dict(tensors))) is not None:
        found["NUM_CLASSES"] = rows - 1
    if (queries := tensors.get("detr.query_embed.weight")) is not None:
        found["NUM_OBJECT_QUERIES"], found["HIDDEN_DIM"] = queries.shape
    for key, part in (("ENC_LAYERS", "encoder"), ("DEC_LAYERS", "decoder")):
        found[key] = _count(tensors, rf"detr\.transformer\.{part}\.layers\.(\d+)\..+")
    if not (found["ENC_LAYERS"] or found["DEC_LAYERS"]):
        return {}
    if (linear := tensors.get("detr.transformer.decoder.layers.0.linear1.weight")) is not None:
        found["DIM_FEEDFORWARD"] = linear.shape[0]
    found["PRE_NORM"] = "detr.transformer.encoder.norm.weight" in tensors
    learned = "detr.backbone.1.row_embed.weight" in tensors
    found["POSITION_EMBEDDING"] = "learned" if learned else "sine"
    found.update(_smca(tensors) or {"TRANSFORMER": "DetrTransformer"})
    return {f"MODEL.DETR.{key}": value for key, value in found.items()}


def _masks(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of models with a mask head; empty for others."""
    first = tensors.get("detr.mask_head.lay1.weight")
    keys = tensors.get("detr.bbox_attention.k_linear.weight")
    if first is None or keys is None:
        return {}
    # The mask head reads the projected features and a map a head.
    found = {"MODEL.MASK_ON": True, "MODEL.DETR.NHEADS": first.shape[1] - keys.shape[0]}
    levels = ["res2", "res3", "res4", "res5"]
    return {**found, "MODEL.RESNETS.OUT_FEATURES": levels} if f"{BACKBONE}stem.conv1.weight" in tensors else found


def _smca(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Transformer, heads and kind of the Gaussian's scale, of SMCA models; empty for others."""
    layer = "detr.transformer.decoder.layers.0."
    offsets, scales = (tensors.get(f"{layer}{x}.weight") for x in ("point2", "point3"))
    if offsets is None:
        return {}
    # Every head predicts an offset in x and y, and none to three scales.
    heads = max(offsets.shape[0] // 2, 1)
    scales_per_head = 0 if scales is None else scales.shape[0] // heads
    return {"TRANSFORMER": "SmcaTransformer", "NHEADS": heads, "SMCA.DYNAMIC_SCALE": f"type{scales_per_head + 1}"}


def describe_family(architecture: Mapping[str, Any]) -> str:
    """ "DETR", or "SMCA type3" and the like."""
    if architecture.get("MODEL.DETR.TRANSFORMER") == "SmcaTransformer":
        return f"SMCA {architecture['MODEL.DETR.SMCA.DYNAMIC_SCALE']}"
    return "DETR"


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = tensors.get(f"{BACKBONE}stem.conv1.weight")
    conv2 = tensors.get(f"{BACKBONE}res2.0.conv2.weight")
    if stem is None or conv2 is None:
        return {}
    last = tensors.get(f"{BACKBONE}res2.0.conv3.weight")
    blocks = tuple(_count(tensors, rf"{re.escape(BACKBONE)}res{i}\.(\d+)\..+") for i in (2, 3, 4, 5))
    found = {
        "STEM_OUT_CHANNELS": stem.shape[0],
        "RES2_OUT_CHANNELS": (conv2 if last is None else last).shape[0],
        "WIDTH_PER_GROUP": conv2.shape[1],
        "NUM_GROUPS": conv2.shape[0] // conv2.shape[1],
    }
    if depth := _DEPTHS.get((last is not None, blocks)):
        found["DEPTH"] = depth
    return {f"MODEL.RESNETS.{key}": value for key, value in found.items()}


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest index that the group of ``pattern`` finds, 0 if it finds none."""
    return max((int(match[1]) + 1 for x in names if (match := re.fullmatch(pattern, x))), default=0)
