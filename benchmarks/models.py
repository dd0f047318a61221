"""The models that are compared: ours, the original, transformers'. All have the same random weights."""

import os
import tempfile
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks import original
from detr_d2 import model_zoo
from detr_d2.checkpoint.architecture import infer_architecture
from detr_d2.checkpoint.export import write_checkpoint
from detr_d2.config.checks import check_amp, check_device
from detr_d2.config.loading import load_config
from detr_d2.utils.errors import UserError

MODELS = {
    "box": "detr_256_6_6_torchvision",
    "dc5": "detr_256_6_6_torchvision_dc5",
    "r101": "detr_256_6_6_torchvision_r101",
    "masks": "detr_segm_256_6_6_torchvision",
    "panoptic": "detr_segm_256_6_6_torchvision_panoptic",
}
"""What people ask for, and the config of it."""

PRECISIONS = {"": "float32", "-bf16": "bfloat16", "-fp16": "float16"}
"""By the ending of a contestant's name."""

THEIRS = {
    "python-detr": ("python-detr", False),
    "python-detr-kept": ("python-detr", True),
    "transformers": ("transformers", False),
    "transformers-kept": ("transformers", True),
}
"""By the start of a contestant's name: the library, and whether its process keeps freed memory, as ours does."""

_SEED = 0
# Classes at random would all be equally improbable, and differences between programs would not show.
_SHARPNESS = 10
# Confident queries of a panoptic model.
SEGMENTS = 15


def make_config(model: str, options: tuple[str, ...] = (), device: str = "cpu") -> CfgNode:
    """
    Args:
        model: one of :data:`MODELS`.
        options: config keys and values.

    Raises:
        UserError: there is no such key, or no such device.
    """
    cfg = load_config(model_zoo.get_config_file(MODELS[model]), list(options))
    cfg.MODEL.WEIGHTS = cfg.MODEL.DETR.FROZEN_WEIGHTS = ""
    cfg.MODEL.DEVICE = device
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        # As in the original, which makes no masks of instances beside it.
        cfg.MODEL.DETR.PANOPTIC.MERGE_AFTER_REMOVAL = False
        cfg.MODEL.DETR.TEST.SCORE_THRESHOLD = cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD
    check_device(cfg)
    check_amp(cfg)
    return cfg


def build_original(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(_SEED)
    model = original.build_network(cfg)
    with torch.no_grad():
        # Without training features explode from block to block, and attention is the same everywhere.
        for block in (x for x in model.modules() if isinstance(x, BasicBlock | Bottleneck)):
            getattr(block, "bn3", block.bn2).weight *= 0.1
        boxes = model.detr if cfg.MODEL.MASK_ON else model
        boxes.class_embed.weight *= _SHARPNESS
        if cfg.MODEL.MASK_ON:
            model.bbox_attention.q_linear.weight *= 3
            model.mask_head.lay1.weight[:, cfg.MODEL.DETR.HIDDEN_DIM :] *= 100
    return model.to(cfg.MODEL.DEVICE)


def build_ours(cfg: CfgNode) -> nn.Module:
    weights = build_original(cfg).state_dict()
    model = build_model(cfg).eval()
    model.load_state_dict(weights)
    return model


def build_transformers(cfg: CfgNode) -> nn.Module:
    """
    Raises:
        UserError: the library, or timm, is not installed, or has no such model.
    """
    try:
        import timm  # noqa: F401
        import transformers
    except ImportError as e:
        raise UserError("The comparison with transformers' DETR takes: pip install transformers timm") from e
    if cfg.MODEL.MASK_ON:
        raise UserError("transformers' DETR is compared on boxes only: leave it out of --contestants.")
    weights = build_ours(cfg).state_dict()
    architecture = infer_architecture(weights)
    keys = ("MODEL.DETR.NHEADS", "MODEL.RESNETS.RES5_DILATION")
    architecture |= dict(zip(keys, (cfg.MODEL.DETR.NHEADS, cfg.MODEL.RESNETS.RES5_DILATION), strict=True))
    dropout = cfg.MODEL.DETR.DROPOUT
    dropouts = {"dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.safetensors")
        write_checkpoint(weights, file, "huggingface", architecture=architecture, labels=None)
        model = transformers.DetrForObjectDetection.from_pretrained(
            folder, **dropouts, auxiliary_loss=cfg.MODEL.DETR.DEEP_SUPERVISION, local_files_only=True
        )
    return model.eval().to(cfg.MODEL.DEVICE)


def autocast(cfg: CfgNode, precision: str) -> AbstractContextManager:
    """
    Args:
        precision: a dtype's name; with "float32" nothing is cast.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, getattr(torch, precision))


def give_segments(cfg: CfgNode, boxes: nn.Module, masks: nn.Module) -> None:
    """Make a random model find :data:`SEGMENTS` segments, things and stuff in turn, the same in every implementation.

    Args:
        boxes: has ``class_embed``. masks: has ``bbox_attention``.
    """
    generator = torch.Generator().manual_seed(_SEED)
    queries, classes = cfg.MODEL.DETR.NUM_OBJECT_QUERIES, cfg.MODEL.DETR.NUM_CLASSES
    logits = torch.zeros(queries, classes + 1)
    logits[:, -1] = 10
    chosen = torch.arange(min(SEGMENTS, queries))
    logits[chosen, torch.where(chosen % 2 == 0, classes - 1 - chosen, chosen) % classes] = 20
    boxes.class_embed = _Given(logits).to(cfg.MODEL.DEVICE)
    # Untrained queries are all but alike, so that rounding would decide whose pixels are whose: they are moved apart.
    apart = torch.randn(queries, cfg.MODEL.DETR.HIDDEN_DIM, generator=generator)
    attention = masks.bbox_attention
    attention.q_linear = nn.Sequential(_Shifted(apart), attention.q_linear).to(cfg.MODEL.DEVICE)


class _Given(nn.Module):
    def __init__(self, logits: Tensor):
        super().__init__()
        # Called as a linear layer's, whose precision models look up.
        self.register_buffer("weight", logits)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight.expand(*hidden.shape[:-1], -1)


class _Shifted(nn.Module):
    def __init__(self, shift: Tensor):
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.shift
