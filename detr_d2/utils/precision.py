"""Float32 regions under autocast, and support of bfloat16 by the CPU."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which float32 stays float32, whatever autocast the caller is in."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@cache
def supports_bfloat16_matmul() -> bool:
    """Check that the CPU has instructions to multiply in bfloat16, which speed up convolutions, as torch reports it."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in known)
