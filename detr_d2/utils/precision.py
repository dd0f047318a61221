"""Where numbers must not lose digits."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which float32 stays float32, whatever autocast the caller is in."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@cache
def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies in bfloat16 itself, as far as torch knows: convolutions are faster then."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in known)
