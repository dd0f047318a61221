"""DETR of the transformers library: the names of its tensors, in releases 4 and 5, and its config.json.

Table Transformers have the same names; they are pre-norm models.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from detr_d2.checkpoint.key_maps import BACKBONE, CheckpointFormat, Rules, torchvision_rules, with_prefixes
from detr_d2.utils.errors import UserError

# Attention heads of the published models, for a model whose number is not known.
DEFAULT_HEADS = 8

# Widths of timm's ResNets, which are the library's image encoders.
_RESNET = {"STEM_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64, "NUM_GROUPS": 1}

# Where releases name a tensor differently, the first is the name in published files; both releases can read it.
_TRANSFORMER = with_prefixes(
    "model.",
    "detr.transformer.",
    (
        ("<coder>.layers.<n>.self_attn.<qkv>_proj.<wb>", "<coder>.layers.<n>.self_attn.<qkv>_proj.<wb>"),
        ("<coder>.layers.<n>.self_attn.out_proj.<wb>", "<coder>.layers.<n>.self_attn.out_proj.<wb>"),
        ("<coder>.layers.<n>.self_attn.o_proj.<wb>", "<coder>.layers.<n>.self_attn.out_proj.<wb>"),
        ("<coder>.layers.<n>.fc<i>.<wb>", "<coder>.layers.<n>.linear<i>.<wb>"),
        ("<coder>.layers.<n>.mlp.fc<i>.<wb>", "<coder>.layers.<n>.linear<i>.<wb>"),
        ("<coder>.layers.<n>.self_attn_layer_norm.<wb>", "<coder>.layers.<n>.norm1.<wb>"),
        ("decoder.layers.<n>.encoder_attn.<qkv>_proj.<wb>", "decoder.layers.<n>.multihead_attn.<qkv>_proj.<wb>"),
        ("decoder.layers.<n>.encoder_attn.out_proj.<wb>", "decoder.layers.<n>.multihead_attn.out_proj.<wb>"),
        ("decoder.layers.<n>.encoder_attn.o_proj.<wb>", "decoder.layers.<n>.multihead_attn.out_proj.<wb>"),
        ("decoder.layers.<n>.encoder_attn_layer_norm.<wb>", "decoder.layers.<n>.norm2.<wb>"),
        ("decoder.layers.<n>.final_layer_norm.<wb>", "decoder.layers.<n>.norm3.<wb>"),
        ("encoder.layers.<n>.final_layer_norm.<wb>", "encoder.layers.<n>.norm2.<wb>"),
        ("<coder>.layernorm.<wb>", "<coder>.norm.<wb>"),
    ),
)

_HEADS_AND_EMBEDDINGS: Rules = (
    ("model.query_position_embeddings.weight", "detr.query_embed.weight"),
    ("model.input_projection.<wb>", "detr.input_proj.<wb>"),
    ("model.position_embedding.row_embeddings.weight", "detr.backbone.1.row_embed.weight"),
    ("model.position_embedding.column_embeddings.weight", "detr.backbone.1.col_embed.weight"),
    ("model.backbone.position_embedding.row_embeddings.weight", "detr.backbone.1.row_embed.weight"),
    ("model.backbone.position_embedding.column_embeddings.weight", "detr.backbone.1.col_embed.weight"),
    ("class_labels_classifier.<wb>", "detr.class_embed.<wb>"),
    ("bbox_predictor.layers.<n>.<wb>", "detr.bbox_embed.layers.<n>.<wb>"),
)


def _own_resnet_rules(prefix: str) -> Rules:
    convolutions = {f"{prefix}embedder.embedder.": f"{BACKBONE}stem.conv1."}
    for stage in (0, 1, 2, 3):
        foreign, native = f"{prefix}encoder.stages.{stage}.layers.<n>.", f"{BACKBONE}res{stage + 2}.<n>."
        convolutions |= {f"{foreign}layer.{i}.": f"{native}conv{i + 1}." for i in (0, 1, 2)}
        convolutions[f"{foreign}shortcut."] = f"{native}shortcut."
    names = (("convolution.weight", "weight"), ("normalization.<norm>", "norm.<norm>"))
    return tuple(rule for prefixes in convolutions.items() for rule in with_prefixes(*prefixes, names))


# The image encoder is a ResNet of timm's, with torchvision's names, or the library's own.
_BACKBONES: Rules = tuple(
    rule
    for prefix in ("model.backbone.conv_encoder.model.", "model.backbone.model.")
    for rule in (*torchvision_rules(prefix), *_own_resnet_rules(prefix))
)

HUGGINGFACE = CheckpointFormat(
    name="transformers DETR",
    signature=(r"model\.decoder\.layers\.\d+\.encoder_attn\.q_proj\.weight", r"class_labels_classifier\.weight"),
    rules=(*_TRANSFORMER, *_HEADS_AND_EMBEDDINGS, *_BACKBONES),
    has_coco_ids=True,
    splits_in_proj=True,
)

HUGGINGFACE_SEGMENTATION = replace(
    HUGGINGFACE,
    name="transformers DETR segmentation",
    signature=tuple(rf"detr\.{x}" for x in HUGGINGFACE.signature),
    rules=(*with_prefixes("detr.", "", HUGGINGFACE.rules), ("<mask_module>.<rest>", None)),
)


def release_4_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy learned position embeddings under the names that release 4 and Table Transformers have for them.

    Either release loads a file with both names, and reports the other one as unused.
    """
    old, new = "model.backbone.position_embedding.", "model.position_embedding."
    return {name.replace(new, old): x.clone() for name, x in tensors.items() if name.startswith(new)}


def make_config(architecture: Mapping[str, Any], labels: Sequence[str | None] | None) -> dict[str, Any]:
    """Return the library's config of a model. If the library has no such model, raise a UserError.

    ``labels`` are the class names by row of the head, without no-object; None: the library's for unnamed classes.
    """
    detr = {key.removeprefix("MODEL.DETR."): x for key, x in architecture.items()}
    resnet = {key.removeprefix("MODEL.RESNETS."): x for key, x in architecture.items() if "RESNETS" in key}
    if detr["TRANSFORMER"] != "DetrTransformer":
        raise UserError("transformers has no SMCA: write this model with --to d2 or --to original.")
    if any(resnet[key] != value for key, value in _RESNET.items()):
        raise UserError(f"transformers' DETR has ResNets of the usual width only; this one has {resnet}.")
    pre_norm = detr["PRE_NORM"]
    labels = [None] * detr["NUM_CLASSES"] if labels is None else labels
    id2label = {str(i): x or ("N/A" if any(labels) else f"LABEL_{i}") for i, x in enumerate(labels)}
    heads, ffn_dim = detr.get("NHEADS", DEFAULT_HEADS), detr["DIM_FEEDFORWARD"]
    return {
        # The library's pre-norm DETR has a name of its own.
        "architectures": ["TableTransformerForObjectDetection" if pre_norm else "DetrForObjectDetection"],
        "model_type": "table-transformer" if pre_norm else "detr",
        "d_model": detr["HIDDEN_DIM"],
        "num_queries": detr["NUM_OBJECT_QUERIES"],
        "encoder_layers": detr["ENC_LAYERS"],
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": ffn_dim,
        "decoder_layers": detr["DEC_LAYERS"],
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": ffn_dim,
        "position_embedding_type": detr["POSITION_EMBEDDING"],
        "use_timm_backbone": True,
        "backbone": f"resnet{resnet['DEPTH']}",
        "use_pretrained_backbone": False,
        "dilation": resnet.get("RES5_DILATION", 1) == 2,
        "id2label": id2label,
        "label2id": {name: int(i) for i, name in id2label.items()},
    }


def config_path(weights: str) -> str:
    """Return the path of the config.json in the folder of a weights file."""
    return os.path.join(os.path.dirname(weights), "config.json")


def read_config(weights: str) -> dict[str, Any]:
    """Read the config.json in the folder of a weights file; empty if there is none that can be read."""
    try:
        with open(config_path(weights), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys and values that ``config`` states and no tensor reveals."""
    settings = {}
    if isinstance(heads := config.get("encoder_attention_heads"), int) and heads > 0:
        settings["MODEL.DETR.NHEADS"] = heads
    if config.get("dilation") is True:
        settings["MODEL.RESNETS.RES5_DILATION"] = 2
    return settings


def read_labels(config: Mapping[str, Any], num_classes: int) -> list[str | None] | None:
    """Return the class names by row of the head, without no-object; None if ``config`` does not name so many."""
    id2label = config.get("id2label")
    if not isinstance(id2label, dict) or len(id2label) != num_classes:
        return None
    labels = [id2label.get(str(i)) for i in range(num_classes)]
    if all(x is None or x == f"LABEL_{i}" for i, x in enumerate(labels)):
        return None
    return [None if x == "N/A" else x for x in labels]
