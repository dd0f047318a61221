"""The architecture that a state dict belongs to, and the comparison of two state dicts."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from detr_d2.checkpoint.class_head import head_rows
from detr_d2.checkpoint.key_maps import BACKBONE

# Depths of the ResNets that Detectron2 builds, by (True for bottleneck blocks, blocks per stage).
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}

# Names of models by transformer.
_SMCA = {"SmcaTransformer": "SMCA", "MultiScaleSmcaTransformer": "multi-scale SMCA"}

# A counter that only some batch norms have and that native models never use.
_OPTIONAL = ".num_batches_tracked"


def infer_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config keys and values that the shapes of ``tensors``, under native names, reveal.

    Dilation and dropout change no shape, and the number of heads only that of SMCA's and the mask head's tensors.
    """
    try:
        return {**_infer_transformer(tensors), **_infer_resnet(tensors), **_infer_masks(tensors)}
    except (IndexError, ValueError, ZeroDivisionError):
        # Weights of another number of axes are of no architecture; comparing them with a model's names them.
        return {}


def describe_architecture(architecture: Mapping[str, Any]) -> str:
    """Describe a model in a line, such as "R50, 6 encoder layers, 6 decoder layers, hidden dimension 256"."""
    detr = {key.rpartition(".")[2]: value for key, value in architecture.items()}
    forms = {
        "DEPTH": "R{}",
        "ENC_LAYERS": "{} encoder layers",
        "DEC_LAYERS": "{} decoder layers",
        "HIDDEN_DIM": "hidden dimension {}",
        "NUM_OBJECT_QUERIES": "{} queries",
        "NUM_CLASSES": "{} classes",
        "POSITION_EMBEDDING": "{} position embedding",
    }
    family = [describe_family(architecture)] if "DYNAMIC_SCALE" in detr else []
    values = [form.format(detr[key]) for key, form in forms.items() if key in detr]
    flags = [text for key, text in (("PRE_NORM", "pre-norm"), ("MASK_ON", "masks")) if detr.get(key)]
    return ", ".join(family + values + flags)


def describe_family(architecture: Mapping[str, Any]) -> str:
    """Return "DETR", or "SMCA" with the type of its scale, such as "SMCA type3" or "multi-scale SMCA type3"."""
    name = _SMCA.get(architecture.get("MODEL.DETR.TRANSFORMER"))
    return "DETR" if name is None else f"{name} {architecture['MODEL.DETR.SMCA.DYNAMIC_SCALE']}"


def _infer_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stacks = ("encoder", "decoder")
    layers = [_count(tensors, rf"detr\.transformer\.{stack}\.layers\.(\d+)\..+") for stack in stacks]
    if not any(layers):
        return {}
    settings: dict[str, Any] = {}
    if (rows := head_rows(tensors)) is not None:
        settings["NUM_CLASSES"] = rows - 1
    if (queries := tensors.get("detr.query_embed.weight")) is not None:
        settings["NUM_OBJECT_QUERIES"], settings["HIDDEN_DIM"] = queries.shape
    settings["ENC_LAYERS"], settings["DEC_LAYERS"] = layers
    layer = "detr.transformer.decoder.layers.0."
    linear, offsets, scales = (tensors.get(f"{layer}{x}.weight") for x in ("linear1", "point2", "point3"))
    if linear is not None:
        settings["DIM_FEEDFORWARD"] = linear.shape[0]
    settings["PRE_NORM"] = "detr.transformer.encoder.norm.weight" in tensors
    settings["POSITION_EMBEDDING"] = "learned" if "detr.backbone.1.row_embed.weight" in tensors else "sine"
    settings["TRANSFORMER"] = "DetrTransformer" if offsets is None else "SmcaTransformer"
    if offsets is not None:
        levels = tensors.get("detr.transformer.level_embed")
        num_levels = 1 if levels is None else len(levels)
        # Every head predicts for every level an offset in x and y, and none to three scales.
        settings["NHEADS"] = max(offsets.shape[0] // (2 * num_levels), 1)
        scales_per_head = 0 if scales is None else scales.shape[0] // (settings["NHEADS"] * num_levels)
        settings["SMCA.DYNAMIC_SCALE"] = f"type{scales_per_head + 1}"
        if levels is not None:
            settings["TRANSFORMER"] = "MultiScaleSmcaTransformer"
            settings |= _infer_encoder(tensors, num_levels)
    return {f"MODEL.DETR.{key}": value for key, value in settings.items()}


def _infer_encoder(tensors: Mapping[str, Tensor], num_levels: int) -> dict[str, Any]:
    """Return the keys of an encoder of several levels."""
    layer = "detr.transformer.encoder.layers.0."
    if f"{layer}norm1.weight" not in tensors:
        return {}
    settings = {"SMCA.POINTWISE": f"{layer}pointwise_in.weight" in tensors}
    if num_levels > 2:
        settings["SMCA.SHARED_CROSS_LEVEL"] = f"{layer}up.1.weight" not in tensors
    return settings


def _infer_masks(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first, keys = (tensors.get(f"detr.{x}.weight") for x in ("mask_head.lay1", "bbox_attention.k_linear"))
    if first is None or keys is None:
        return {}
    # The mask head reads the projected features and one attention map per head.
    settings = {"MODEL.MASK_ON": True, "MODEL.DETR.NHEADS": first.shape[1] - keys.shape[0]}
    if f"{BACKBONE}stem.conv1.weight" in tensors:
        settings["MODEL.RESNETS.OUT_FEATURES"] = ["res2", "res3", "res4", "res5"]
    return settings


def _infer_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stem, conv2, last = (tensors.get(f"{BACKBONE}{x}.weight") for x in ("stem.conv1", "res2.0.conv2", "res2.0.conv3"))
    if stem is None or conv2 is None:
        return {}
    blocks = tuple(_count(tensors, rf"{re.escape(BACKBONE)}res{i}\.(\d+)\..+") for i in (2, 3, 4, 5))
    settings = {
        "STEM_OUT_CHANNELS": stem.shape[0],
        "RES2_OUT_CHANNELS": (conv2 if last is None else last).shape[0],
        "WIDTH_PER_GROUP": conv2.shape[1],
        "NUM_GROUPS": conv2.shape[0] // conv2.shape[1],
    }
    # A transformer of several levels has a projection for each; the last two read the same one.
    widths = {settings["RES2_OUT_CHANNELS"] * 2**i: f"res{i + 2}" for i in range(4)}
    projections = [x.shape[1] for name, x in tensors.items() if re.fullmatch(r"detr\.input_proj\.\d+\.weight", name)]
    if projections:
        settings["OUT_FEATURES"] = list(dict.fromkeys(widths[x] for x in projections if x in widths))
    if depth := _DEPTHS.get((last is not None, blocks)):
        settings["DEPTH"] = depth
    return {"INPUT.CHANNELS": stem.shape[1]} | {f"MODEL.RESNETS.{key}": value for key, value in settings.items()}


def _count(names: Iterable[str], pattern: str) -> int:
    """Return the largest index that the group of ``pattern`` matches in ``names``, plus one; 0 without a match."""
    return max((int(match[1]) + 1 for x in names if (match := re.fullmatch(pattern, x))), default=0)


class Differences(NamedTuple):
    """Names of tensors, by the reason why a file does not fit a model; it fits if ``not any(differences)``."""

    missing: list[str]  # In the model, not in the file.
    unexpected: list[str]  # In the file, not in the model.
    reshaped: list[str]  # In both, of different shapes.


def compare(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Differences:
    """Compare names and shapes of a file's ``tensors`` and the ``model``'s."""
    return Differences(
        missing=[name for name in model if name not in tensors and not name.endswith(_OPTIONAL)],
        unexpected=[name for name in tensors if name not in model and not name.endswith(_OPTIONAL)],
        reshaped=[name for name in tensors if name in model and tensors[name].shape != model[name].shape],
    )


def explain(
    differences: Differences, tensors: Mapping[str, Tensor], model: Mapping[str, Tensor], ignore: Collection[str] = ()
) -> str:
    """Describe how a file and a model differ, in config keys except those to ``ignore``, and in tensors."""
    in_file, in_model = infer_architecture(tensors), infer_architecture(model)
    keys = [x for x in in_file if x in in_model and x not in ignore and in_file[x] != in_model[x]]
    lines = [f"{key}: {in_file[key]} in the file, {in_model[key]} in the model" for key in keys]
    only = (("model", differences.missing), ("file", differences.unexpected))
    lines += [f"only in the {where}: {group_names(names)}" for where, names in only if names]
    if differences.reshaped:
        name = differences.reshaped[0]
        shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(model[name].shape)} in the model"
        lines.append(f"of other shapes: {group_names(differences.reshaped)}, such as {name}: {shapes}")
    return "\n".join(f"  {line}" for line in lines)


def group_names(names: Collection[str]) -> str:
    """Count names by their module, such as "2 detr.class_embed, 24 detr.transformer.decoder"; list up to three."""
    if len(names) <= 3:
        return ", ".join(names)
    return ", ".join(f"{count} {module}" for module, count in Counter(map(_module, names)).items())


def _module(name: str) -> str:
    """Return the leading modules of a name, at most four, up to the first index or the tensor's own name."""
    modules = name.split(".")[:-1]
    indices = [i for i, x in enumerate(modules) if x.isdigit() and i > 2]
    return ".".join(modules[: min([4, len(modules), *indices])]) or name
