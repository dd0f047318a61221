"""Where numbers must not lose digits."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which float32 stays float32, whatever autocast the caller is in."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def autocast_where_faster(device: torch.device) -> AbstractContextManager:
    """For attention and linear layers: a context that ends autocast on CPUs without a matrix unit for bfloat16.

    There only convolutions are faster in bfloat16.
    """
    return without_autocast(device) if device.type == "cpu" and not _has_matrix_unit() else nullcontext()


@cache
def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies in bfloat16 itself, as far as torch knows: convolutions are faster then."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in known)


@cache
def _has_matrix_unit() -> bool:
    # Older versions of torch don't know.
    find_out = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return find_out is not None and find_out()
