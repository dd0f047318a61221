"""A trained model made faster, with the same call and the same results."""

import copy
import logging
from collections.abc import Iterator
from itertools import chain

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detr_d2.config import check_precision
from detr_d2.modeling import Detr, DetrNetwork
from detr_d2.modeling.compilation import compile_for_inference
from detr_d2.modeling.smca import SmcaDecoderLayer
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def optimize_for_inference(model: Detr, precision: str = "float32", compile: bool = False) -> Detr:
    """Return a faster copy of a trained model, which is called in the same way and gives the same results.

    Batch norms are folded into the convolutions; on the CPU and in half precision all layers are channels last. In
    float32 scores and boxes (relative to the image) differ by rounding alone, less than 1e-4. docs/INFERENCE.md states
    the effect of half precision, and the gain.

    The copy can only predict: it has no gradients, and its state dict is not the model's. It must stay on its device.

    Args:
        model: a trained model, which is not changed.
        precision: "float32", "bfloat16" or "float16". If the processor is slow in it, float32 with a warning.
        compile: True to compile backbone and transformer with ``torch.compile`` at the first image, which takes
            minutes. Images of any size use the same code. If it fails, a warning is logged.

    Raises:
        UserError: ``model`` is not a Detr or was optimized before, or ``precision`` is unknown.
    """
    if not isinstance(model, Detr) or hasattr(model, "optimized"):
        what = "one that was optimized before" if isinstance(model, Detr) else f"a {type(model).__name__}"
        raise UserError(f"optimize_for_inference takes a detr_d2.Detr as it was built and trained, not {what}.")
    dtype = usable_precision(precision, model.device)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    network = model.detr
    folded = fold_batch_norms(network.backbone)
    if dtype != torch.float32:
        cast_network(network, dtype)
    if model.device.type == "cpu" or dtype != torch.float32:
        network.to(memory_format=torch.channels_last)
    compiled = compile and compile_for_inference([network.backbone[0].backbone, network.transformer])
    model.optimized = True
    name = str(dtype).removeprefix("torch.")
    logger.info(f"Optimized for inference: {folded} batch norms folded, {name}{', compiled' if compiled else ''}.")
    return model


def inference_options(cfg: CfgNode) -> dict:
    """Return the arguments of :func:`optimize_for_inference` that ``MODEL.DETR.TEST`` sets."""
    test = cfg.MODEL.DETR.TEST
    return {"precision": test.PRECISION, "compile": test.COMPILE}


def usable_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of a name in :data:`~detr_d2.config.PRECISIONS`; float32, with a warning, if it is slow.

    If there is no such precision, raise a UserError.
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
        # Processors without these instructions are many times slower than in float32.
        name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
        return bool(getattr(torch.ops.mkldnn, name)())
    return False


def fold_batch_norms(module: nn.Module) -> int:
    """Fold the batch norms of Detectron2's convolutions into their weights and biases, in place and in float64.

    The module is in evaluation mode. Other norms stay, and so do the batch norms of timm's models, which are separate
    modules. Return the number of folded norms.
    """
    folded = 0
    for convolution in module.modules():
        norm = convolution.norm if isinstance(convolution, Conv2d) else None
        if isinstance(norm, FrozenBatchNorm2d | _BatchNorm) and norm.running_var is not None:
            weight, bias = (None if x is None else x.double() for x in (convolution.weight, convolution.bias))
            statistics = (norm.running_mean.double(), norm.running_var.double(), norm.eps)
            affine = (None if x is None else x.double() for x in (norm.weight, norm.bias))
            fused = fuse_conv_bn_weights(weight, bias, *statistics, *affine)
            like = convolution.weight
            convolution.weight, convolution.bias = (nn.Parameter(x.detach().to(like), False) for x in fused)
            convolution.norm = None
            folded += 1
    return folded


def cast_network(network: DetrNetwork, dtype: torch.dtype) -> None:
    """Cast the backbone, the transformer and the mask head to ``dtype``, in place.

    Weights are cast once, where autocast would cast them in every pass. The position embedding, SMCA's layers that
    predict points and scales, and the class and box heads stay float32.
    """
    parts = (network.backbone[0], network.input_proj, network.transformer, network.bbox_attention, network.mask_head)
    exact = set(_layers_of_points(network))
    for module in chain.from_iterable(x.modules() for x in parts if x is not None):
        if module not in exact:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(dtype)


def _layers_of_points(network: DetrNetwork) -> Iterator[nn.Module]:
    for layer in network.modules():
        if isinstance(layer, SmcaDecoderLayer):
            for module in layer.float32_layers():
                yield from module.modules()
