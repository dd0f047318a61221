"""What to do to a model that will only predict."""

import copy
import logging

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from detr_d2.inference.folding import fold_batch_norms
from detr_d2.inference.precision import cast_network, usable_precision
from detr_d2.modeling.inference_compilation import compile_forward
from detr_d2.modeling.meta_arch import Detr
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def optimize_for_inference(model: Detr, precision: str = "float32", compile: bool = False) -> Detr:
    """A faster copy of a trained model, called as the model is, which gives the same results.

    Batch norms become part of the convolutions and, on the CPU and in half precision, the convolutions see their
    images channels last. In float32 scores and boxes differ by rounding alone, less than 1e-4 of scores and of boxes
    relative to the image; docs/INFERENCE.md tells what half precision changes, and what is gained.

    The copy is for predicting only: it has no gradients, and its state dict is not the model's. It lies on the
    model's device and is to stay there.

    Args:
        model: it is not changed.
        precision: "float32", "bfloat16" or "float16". Where the processor is slow in it, float32, with a warning.
        compile: compile backbone and transformer with ``torch.compile``, at the first image, which takes
            minutes. Images of any sizes use the same code. Where it can't be done, a warning is logged.

    Raises:
        UserError: ``model`` is no Detr or was optimised before, or ``precision`` is not known.
    """
    if not isinstance(model, Detr) or hasattr(model, "optimized"):
        what = "one that was optimised before" if isinstance(model, Detr) else f"a {type(model).__name__}"
        raise UserError(f"optimize_for_inference takes a detr_d2.Detr as it was built and trained, not {what}.")
    dtype = usable_precision(precision, model.device)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    network = model.detr
    folded = fold_batch_norms(network.backbone)
    if dtype != torch.float32:
        cast_network(network, dtype)
    if model.device.type == "cpu" or dtype != torch.float32:
        network.to(memory_format=torch.channels_last)
        network.backbone[0].backbone.register_forward_pre_hook(_channels_last)
    compiled = compile and compile_forward([network.backbone[0].backbone, network.transformer])
    model.optimized = True
    name = str(dtype).removeprefix("torch.")
    logger.info(f"Optimised for inference: {folded} batch norms folded, {name}{', compiled' if compiled else ''}.")
    return model


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


def inference_options(cfg: CfgNode) -> dict:
    """The arguments of :func:`optimize_for_inference` that ``MODEL.DETR.TEST`` stands for."""
    test = cfg.MODEL.DETR.TEST
    return {"precision": test.PRECISION, "compile": test.COMPILE}
