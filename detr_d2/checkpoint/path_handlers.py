"""Short names for published weights, wherever Detectron2 takes a path: ``detr://NAME``, ``torchvision://NAME``."""

from collections.abc import Callable
from typing import IO, Any

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager

from detr_d2.config.published import published_model
from detr_d2.utils.errors import UserError

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class NamedWeightsHandler(PathHandler):
    """Downloads what a name stands for, as PathManager does with the address behind it, and caches it."""

    def __init__(self, prefix: str, address: Callable[[str], str]):
        """
        Args:
            prefix: such as "detr://".
            address: the URL of a name without the prefix.
        """
        super().__init__()
        self.prefix = prefix
        self.address = address

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering=buffering, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._url(path)
        except UserError:
            return False
        return True

    def _url(self, path: str) -> str:
        return self.address(path.removeprefix(self.prefix))


def detr_address(name: str) -> str:
    """The URL of a model in :data:`detr_d2.config.published.PUBLISHED`."""
    return published_model(name).url


def torchvision_address(name: str) -> str:
    """The URL of torchvision's ImageNet weights of a ResNet.

    Args:
        name: "resnet101", with the weights that DETR was trained from, or "resnet101/IMAGENET1K_V2" with others.

    Raises:
        UserError: torchvision has no such model or weights; the message lists what it has.
    """
    model, _, tag = name.partition("/")
    if model not in _RESNETS:
        raise UserError(f"torchvision://{name} is not known: choose one of {', '.join(_RESNETS)}.")
    weights = torchvision.models.get_model_weights(model)
    tag = tag or "IMAGENET1K_V1"
    if tag not in weights.__members__:
        raise UserError(f"torchvision://{name} is not known: {model} has {', '.join(weights.__members__)}.")
    return weights[tag].url


def register_path_handlers() -> None:
    """Let Detectron2's PathManager understand ``detr://NAME`` and ``torchvision://NAME``. Can be called again."""
    for prefix, address in (("detr://", detr_address), ("torchvision://", torchvision_address)):
        PathManager.register_handler(NamedWeightsHandler(prefix, address))
