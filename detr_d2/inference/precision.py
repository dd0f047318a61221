"""The numbers that a model computes with."""

import logging
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from detr_d2.config import check_precision
from detr_d2.modeling import DetrNetwork
from detr_d2.modeling.smca import SmcaDecoderLayer

logger = logging.getLogger(__name__)


def usable_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision of a name in :data:`~detr_d2.config.PRECISIONS`; float32, with a warning, where it is not fast.

    Raises:
        UserError: there is none of this name.
    """
    check_precision(name)
    dtype = getattr(torch, name)
    if dtype != torch.float32 and not _is_fast(dtype, device):
        logger.warning(f"Predicting in float32: this {device.type.upper()} computes slowly in {name}.")
        return torch.float32
    return dtype


def _is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported()
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        # Whether the processor has the instructions; without them these numbers take many times longer than float32.
        name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
        return bool(getattr(torch.ops.mkldnn, name)())
    return False


def cast_network(network: DetrNetwork, dtype: torch.dtype) -> None:
    """Let the backbone, the transformer and the mask head compute in ``dtype``, in place.

    Weights are cast once, where autocast would do it in every pass. The position embedding, what SMCA computes of
    places in the image, and all from the class and box heads on stay float32.
    """
    backbone = network.backbone[0]
    half = (backbone, network.input_proj, network.transformer, network.bbox_attention, network.mask_head)
    exact = set(_layers_of_places(network))
    for module in chain.from_iterable(x.modules() for x in half if x is not None):
        if module not in exact:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(dtype)
    backbone.backbone.register_forward_pre_hook(_CastArguments(dtype))
    network.transformer.register_forward_pre_hook(_CastArguments(dtype, from_=1))


def _layers_of_places(network: DetrNetwork) -> Iterator[nn.Module]:
    for layer in network.modules():
        if isinstance(layer, SmcaDecoderLayer):
            for module in filter(None, (layer.point1, layer.point2, layer.point3)):
                yield from module.modules()


class _CastArguments:
    """A hook before a module: its tensors, from the argument ``from_`` on, in another precision."""

    def __init__(self, dtype: torch.dtype, from_: int = 0):
        self.dtype = dtype
        self.from_ = from_

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        cast = (x.to(self.dtype) if isinstance(x, Tensor) else x for x in inputs[self.from_ :])
        return (*inputs[: self.from_], *cast)
