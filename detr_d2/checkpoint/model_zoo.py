"""Configs and published models by name, with the functions of ``detectron2.model_zoo``.

``NAME`` is a config file relative to ``configs/`` ("detr_256_6_6_torchvision.yaml"; the ending may be left out) or a
published model of :data:`~detr_d2.config.published.PUBLISHED` ("detr-r50").
"""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.config import add_detr_config, packaged_config
from detr_d2.config.published import PUBLISHED
from detr_d2.utils.errors import UserError

__all__ = ["PUBLISHED", "get", "get_checkpoint_url", "get_config", "get_config_file"]


def get_config_file(name: str) -> str:
    """Return the path of a config.

    Raises:
        UserError: there is no such config; the message lists names like it.
    """
    return packaged_config(name)


def get_checkpoint_url(name: str) -> str:
    """The address of the published weights of a config or model.

    Raises:
        UserError: none are published.
    """
    if name in PUBLISHED:
        return PUBLISHED[name].url
    file = f"{name.removesuffix('.yaml')}.yaml"
    found = next((model for model in PUBLISHED.values() if model.config == file), None)
    if found is None:
        raise UserError(
            f"No weights are published for {name!r}. There are weights for "
            f"{', '.join(x.config for x in PUBLISHED.values())} and {', '.join(PUBLISHED)}."
        )
    return found.url


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Detectron2's defaults, DETR's, and those of the config.

    Args:
        trained: set ``MODEL.WEIGHTS`` to the published weights, and freeze none. Otherwise ``MODEL.WEIGHTS`` and
            ``MODEL.DETR.FROZEN_WEIGHTS`` are what the config starts training from.

    Raises:
        UserError: there is no such config, or no weights are published for it.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
        # A file with masks holds the box model as well.
        cfg.MODEL.DETR.FROZEN_WEIGHTS = ""
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model in training mode, its weights loaded: see :func:`get_config`.

    Args:
        device: overrides ``MODEL.DEVICE``; by default the CPU where there is no CUDA GPU.

    Raises:
        UserError: as :func:`get_config`; or the weights can't be downloaded.
    """
    cfg = get_config(name, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    checkpointer = DetrCheckpointer(model, allow_new_head=not trained, frozen_weights=cfg.MODEL.DETR.FROZEN_WEIGHTS)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    return model
