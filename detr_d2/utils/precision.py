"""Float32 regions under autocast, and what this CPU computes fast."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which float32 stays float32, whatever autocast the caller is in."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@cache
def has_bfloat16_products() -> bool:
    """Check if the CPU has instructions for products in bfloat16, which speed up convolutions, as torch reports it."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in known)
