"""The models that the authors of DETR published, and short names for weights wherever Detectron2 accepts a path.

``detr://NAME`` is a published model, ``torchvision://NAME`` a ResNet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager

from detr_d2.utils.errors import UserError

_FOLDER = "https://dl.fbaipublicfiles.com/detr/"
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint of the original DETR, with its results on COCO val2017, in percent, as its authors report them."""

    name: str
    file: str
    config: str
    """The config, in ``configs/``, of the model that it fits."""
    box_ap: float
    mask_ap: float | None = None
    pq: float | None = None
    """Panoptic quality."""

    @property
    def url(self) -> str:
        return _FOLDER + self.file


_BOX = "detr_256_6_6_torchvision"
_PANOPTIC = "detr_segm_256_6_6_torchvision_panoptic"

PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel("detr-r50", "detr-r50-e632da11.pth", f"{_BOX}.yaml", 42.0),
        PublishedModel("detr-r50-dc5", "detr-r50-dc5-f0fb7ef5.pth", f"{_BOX}_dc5.yaml", 43.3),
        PublishedModel("detr-r101", "detr-r101-2c7b67e5.pth", f"{_BOX}_r101.yaml", 43.5),
        PublishedModel("detr-r101-dc5", "detr-r101-dc5-a2e86def.pth", f"{_BOX}_r101_dc5.yaml", 44.9),
        PublishedModel("detr-r50-panoptic", "detr-r50-panoptic-00ce5173.pth", f"{_PANOPTIC}.yaml", 38.8, 31.1, 43.4),
        PublishedModel(
            "detr-r50-dc5-panoptic", "detr-r50-dc5-panoptic-da08f1b1.pth", f"{_PANOPTIC}_dc5.yaml", 40.2, 31.9, 44.6
        ),
        PublishedModel(
            "detr-r101-panoptic", "detr-r101-panoptic-40021d53.pth", f"{_PANOPTIC}_r101.yaml", 40.1, 33.0, 45.1
        ),
    )
}


def detr_url(name: str) -> str:
    """Return the URL of a model in :data:`PUBLISHED`.

    Raises:
        UserError: there is none of this name; the message lists those there are.
    """
    if name not in PUBLISHED:
        raise UserError(f"There is no published model {name!r}: choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name].url


def torchvision_url(name: str) -> str:
    """Return the URL of torchvision's ImageNet weights of a ResNet.

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


class NamedWeightsHandler(PathHandler):
    """Handler that downloads the file of a name as PathManager does with its URL, and caches it."""

    def __init__(self, prefix: str, url: Callable[[str], str]):
        """Handle paths that begin with ``prefix``, such as "detr://".

        Args:
            prefix: of the paths.
            url: returns the URL of a name without the prefix, and raises a UserError for unknown names.
        """
        super().__init__()
        self.prefix = prefix
        self.url = url

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
        return self.url(path.removeprefix(self.prefix))


def register_path_handlers() -> None:
    """Let Detectron2's PathManager understand ``detr://NAME`` and ``torchvision://NAME``. Can be called again."""
    for prefix, url in (("detr://", detr_url), ("torchvision://", torchvision_url)):
        PathManager.register_handler(NamedWeightsHandler(prefix, url))
