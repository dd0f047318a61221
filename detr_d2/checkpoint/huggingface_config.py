"""The config.json that the transformers library keeps beside a model's weights."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detr_d2.utils.errors import UserError

NAME = "config.json"
# What timm's ResNets are like, which are the library's encoders of images.
_RESNET = {"STEM_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64, "NUM_GROUPS": 1}
DEFAULT_HEADS = 8
"""Attention heads of a model that nothing tells of: as published."""


def make_config(architecture: Mapping[str, Any], labels: Sequence[str | None] | None) -> dict[str, Any]:
    """The library's config of a model.

    Args:
        architecture: config keys and values of ours.
        labels: what the head's rows stand for, without no-object; by default as the library calls nameless classes.

    Raises:
        UserError: the library has no such model.
    """
    detr = {key.removeprefix("MODEL.DETR."): x for key, x in architecture.items() if key.startswith("MODEL.DETR.")}
    resnet = {key.removeprefix("MODEL.RESNETS."): x for key, x in architecture.items() if "RESNETS" in key}
    if detr["TRANSFORMER"] != "DetrTransformer":
        raise UserError("transformers has no SMCA: write this model with --to d2 or --to original.")
    if any(resnet[key] != value for key, value in _RESNET.items()):
        raise UserError(f"transformers' DETR has ResNets of the usual width only; this one has {resnet}.")
    pre_norm = detr["PRE_NORM"]
    labels = [None] * detr["NUM_CLASSES"] if labels is None else labels
    id2label = {str(i): x or ("N/A" if any(labels) else f"LABEL_{i}") for i, x in enumerate(labels)}
    layers = {
        f"{part}_{name}": value
        for part, count in (("encoder", detr["ENC_LAYERS"]), ("decoder", detr["DEC_LAYERS"]))
        for name, value in (
            ("layers", count),
            ("attention_heads", detr.get("NHEADS", DEFAULT_HEADS)),
            ("ffn_dim", detr["DIM_FEEDFORWARD"]),
        )
    }
    return {
        # Its pre-norm DETR has a name of its own.
        "architectures": ["TableTransformerForObjectDetection" if pre_norm else "DetrForObjectDetection"],
        "model_type": "table-transformer" if pre_norm else "detr",
        "d_model": detr["HIDDEN_DIM"],
        "num_queries": detr["NUM_OBJECT_QUERIES"],
        **layers,
        "position_embedding_type": detr["POSITION_EMBEDDING"],
        "use_timm_backbone": True,
        "backbone": f"resnet{resnet['DEPTH']}",
        "use_pretrained_backbone": False,
        "dilation": resnet.get("RES5_DILATION", 1) == 2,
        "id2label": id2label,
        "label2id": {name: int(i) for i, name in id2label.items()},
    }


def read_config(weights: str) -> dict[str, Any]:
    """The config.json in the folder of a weights file; empty if there is none that can be read."""
    try:
        with open(os.path.join(os.path.dirname(weights), NAME), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config keys of ours that ``config`` tells and that no tensor does."""
    settings = {}
    if isinstance(heads := config.get("encoder_attention_heads"), int) and heads > 0:
        settings["MODEL.DETR.NHEADS"] = heads
    if config.get("dilation") is True:
        settings["MODEL.RESNETS.RES5_DILATION"] = 2
    return settings


def read_labels(config: Mapping[str, Any], num_classes: int) -> list[str | None] | None:
    """What the head's rows stand for, without no-object; None if ``config`` gives no names for so many."""
    id2label = config.get("id2label")
    if not isinstance(id2label, dict) or len(id2label) != num_classes:
        return None
    labels = [id2label.get(str(i)) for i in range(num_classes)]
    if all(x is None or x == f"LABEL_{i}" for i, x in enumerate(labels)):
        return None
    return [None if x == "N/A" else x for x in labels]
