"""An attention's input projections: one tensor as in torch, or three as elsewhere."""

import re

import torch
from torch import Tensor

_SPLIT = r"(.+)\.q_proj\.(weight|bias)"
_JOINED = r"(.+)\.in_proj_(weight|bias)"


def join_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack every ``q_proj``, ``k_proj`` and ``v_proj``, (C, C) or (C,), to ``in_proj_``, (3C, C) or (3C,).

    Where one of the three is missing, the others keep their names, so that comparing with a model tells.
    """
    joined = dict(tensors)
    for name in tensors:
        if not (match := re.fullmatch(_SPLIT, name)):
            continue
        three = [f"{match[1]}.{x}_proj.{match[2]}" for x in "qkv"]
        if all(x in tensors for x in three):
            joined[f"{match[1]}.in_proj_{match[2]}"] = torch.cat([joined.pop(x) for x in three])
    return joined


def split_in_proj(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`join_in_proj`; no two tensors share memory."""
    split = {}
    for name, x in tensors.items():
        if match := re.fullmatch(_JOINED, name):
            for letter, part in zip("qkv", x.chunk(3), strict=True):
                split[f"{match[1]}.{letter}_proj.{match[2]}"] = part.clone()
        else:
            split[name] = x
    return split
