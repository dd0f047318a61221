"""AdamW with a separate learning rate for the backbone, and gradient clipping over the full model."""

import logging
from collections.abc import Callable
from importlib import import_module

import torch
from detectron2.config import CfgNode, configurable
from detectron2.solver.build import maybe_add_gradient_clipping
from tabulate import tabulate
from torch import nn

from detr_d2.config import choice
from detr_d2.config.checks import amp_dtype
from detr_d2.engine.muon import Muon, muon_groups
from detr_d2.modeling import TimmBackbone, TopDown
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` with two parameter groups, ``backbone`` and ``transformer and heads``.

    "MUON" divides both, see :func:`~detr_d2.engine.muon.muon_groups`.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the norm of all gradients together, right before each
    step; the other types are Detectron2's. For any Detectron2 trainer that has ``build_optimizer``.
    """
    groups = parameter_groups(cfg, model)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    optimizer = choice(_OPTIMIZERS, "SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER)(cfg, groups, model)
    if clip.ENABLED:
        add_clipping = choice(_CLIP_TYPES, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE)
        optimizer = add_clipping(cfg, optimizer)
    logger.info("Parameter groups:\n%s", group_table(optimizer))
    return optimizer


def _groups_from_config(cfg: CfgNode, model: nn.Module) -> dict:
    solver = cfg.SOLVER
    return {
        "model": model,
        "lr": solver.BASE_LR,
        "weight_decay": solver.WEIGHT_DECAY,
        "backbone_multiplier": solver.BACKBONE_MULTIPLIER,
        "layer_decay": solver.LAYER_DECAY,
    }


@configurable(from_config=_groups_from_config)
def parameter_groups(
    model: nn.Module,
    *,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    backbone_multiplier: float = 0.1,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Split the trainable parameters into those below a module called ``backbone`` and the others.

    :class:`~detr_d2.modeling.TopDown` is with the others, since no pretrained weights have its layers.

    Args:
        model: a Detr. From a config: ``parameter_groups(cfg, model)``.
        lr: learning rate of transformer and heads.
        weight_decay: weight decay of all parameters.
        backbone_multiplier: learning rate of the backbone relative to ``lr``.
        layer_decay: see :func:`layer_scales`; if it is not 1, the backbone has one group per layer.
    """
    scales = layer_scales(model, layer_decay) if layer_decay != 1 else {}
    added = {p for module in model.modules() if isinstance(module, TopDown) for p in module.parameters()}
    groups: dict[str, dict] = {}
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name, rate = "transformer and heads", lr
        if "backbone" in path.split(".") and parameter not in added:
            scale = scales.get(parameter, 1.0)
            name = "backbone" if scale == 1 else f"backbone x {scale:.3g}"
            rate = lr * backbone_multiplier * scale
        group = {"params": [], "lr": rate, "weight_decay": weight_decay, "name": name}
        groups.setdefault(name, group)["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: not group["name"].startswith("backbone"))


def layer_scales(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Return the factor of the learning rate of every parameter of a timm backbone: ``decay`` ** layers after it.

    The layers are those of timm (arXiv 2111.06377, appendix A.1).

    Raises:
        UserError: the backbone is not one of timm, or timm does not divide it into layers.
    """
    body = next((x.body for x in model.modules() if isinstance(x, TimmBackbone)), None)
    whole = getattr(body, "model", body)
    if not hasattr(whole, "group_matcher"):
        raise UserError(
            f"SOLVER.LAYER_DECAY {decay} needs a transformer of timm as backbone; this is "
            f"{'another one' if whole is None else type(whole).__name__}: set SOLVER.LAYER_DECAY 1."
        )
    groups = import_module("timm.optim").param_groups_layer_decay(whole, layer_decay=decay)
    return {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}


def group_table(optimizer: torch.optim.Optimizer) -> str:
    """Format tensors, parameters, learning rate and weight decay of each group as a table."""
    rows = [
        (x.get("name", i), len(x["params"]), sum(p.numel() for p in x["params"]), x["lr"], x["weight_decay"])
        for i, x in enumerate(optimizer.param_groups)
    ]
    headers = ("group", "tensors", "parameters", "learning rate", "weight decay")
    return tabulate(rows, headers, tablefmt="simple", intfmt=",", floatfmt="g")


def _adamw(cfg: CfgNode, groups: list[dict], model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **_adamw_arguments(cfg, groups))


def _muon(cfg: CfgNode, groups: list[dict], model: nn.Module) -> torch.optim.Optimizer:
    dtype = torch.bfloat16 if amp_dtype(cfg) == torch.bfloat16 else torch.float32
    return Muon(muon_groups(groups, model), dtype=dtype, **_adamw_arguments(cfg, groups))


def _adamw_arguments(cfg: CfgNode, groups: list[dict]) -> dict:
    # Under a gradient scaler the fused step divides by the scale itself, after the clipping has read the gradients.
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    devices = {p.device for group in groups for p in group["params"]}
    fused = {"fused": True} if not scaled and all(map(_has_fused_adamw, devices)) else {}
    return {"lr": cfg.SOLVER.BASE_LR, **fused}


def _has_fused_adamw(device: torch.device) -> bool:
    """Try a step: support depends on device and version of torch, and some versions only fail in the first step."""
    probe = torch.zeros(1, device=device, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.AdamW([probe], fused=True).step()
    except RuntimeError:
        return False
    return True


def _sgd(cfg: CfgNode, groups: list[dict], model: nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def _clip_full_model(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    return add_full_model_clipping(optimizer, clipping.CLIP_VALUE, clipping.NORM_TYPE)


def add_full_model_clipping(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> torch.optim.Optimizer:
    """Clip the norm of all gradients together, right before each step. Return the optimizer."""

    def clip(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def clipped_optimizer(
    params: list[dict],
    *,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    max_norm: float = 0.1,
    norm_type: float = 2.0,
    **options,
) -> torch.optim.Optimizer:
    """Build an optimizer with :func:`add_full_model_clipping`, for a LazyConfig.

    Args:
        params: groups, e.g. of :func:`parameter_groups`.
        kind: class of the optimizer.
        max_norm, norm_type: norm that the gradients are clipped to, and its exponent.
        options: further arguments of ``kind``.
    """
    return add_full_model_clipping(kind(params, **options), max_norm, norm_type)


_OPTIMIZERS = {"ADAMW": _adamw, "MUON": _muon, "SGD": _sgd}
_CLIP_TYPES = {
    "full_model": _clip_full_model,
    "norm": maybe_add_gradient_clipping,
    "value": maybe_add_gradient_clipping,
}
