"""Checks that the image format, the pixel statistics, the backbone and its weights agree."""

import logging
import re
from typing import NamedTuple

from detectron2.config import CfgNode

from detr_d2.utils.errors import UserError
from detr_d2.utils.timm_models import import_timm

logger = logging.getLogger(__name__)


class Family(NamedTuple):
    """Weights that were trained on images of one format and with the same statistics."""

    name: str
    image_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # ``MODEL.RESNETS.STRIDE_IN_1X1`` of bottleneck blocks; None: not known, or not a ResNet of Detectron2.
    stride_in_1x1: bool | None = None


TORCHVISION = Family("torchvision's ImageNet weights", "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False)
CAFFE2 = Family("Caffe2's ImageNet weights", "BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
MSRA = Family("the MSRA weights", "BGR", CAFFE2.mean, CAFFE2.std, True)
RESNEXT = Family("the ResNeXt weights of Detectron1", "BGR", CAFFE2.mean, (57.375, 57.12, 58.395), False)

_FAMILIES_BY_PATH = (
    (r"(detectron2|catalog)://ImageNetPretrained/MSRA/.+", MSRA),
    (r"(detectron2|catalog)://ImageNetPretrained/FAIR/X-.+", RESNEXT),
    (r"(detectron2|catalog)://ImageNetPretrained/FAIR/.+", CAFFE2),
    (r"detectron2://ImageNetPretrained/torchvision/.+", TORCHVISION),
    (r"(torchvision|detr)://.+", TORCHVISION),
    (r"https://dl\.fbaipublicfiles\.com/detr/.+", TORCHVISION),
    (r"https://download\.pytorch\.org/models/.+", TORCHVISION),
)
# Statistics are often written with fewer digits. The families differ by more.
_TOLERANCE = 0.51


def file_channels(cfg: CfgNode) -> int:
    """Return the number of bands that image files must have; 3: any, files are converted to ``INPUT.FORMAT``."""
    return 3 if cfg.INPUT.FORMAT == "L" else cfg.INPUT.CHANNELS


def check_channels(cfg: CfgNode) -> None:
    """Raise a UserError if the pixel statistics are not those of as many channels as images have."""
    channels, reason = cfg.INPUT.CHANNELS, f"INPUT.CHANNELS is {cfg.INPUT.CHANNELS}"
    if cfg.INPUT.FORMAT == "L":
        if channels not in (1, 3):
            raise UserError(f"INPUT.FORMAT L converts images to gray, but {reason}: set INPUT.CHANNELS 1.")
        channels, reason = 1, "INPUT.FORMAT is L"
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if (count := len(cfg.MODEL[key])) != channels:
            raise UserError(
                f"MODEL.{key} has {count} value{'s' if count != 1 else ''}, but {reason}: set {channels}, in the units "
                "of the files. `detr-d2 check --channels` prints those of your images."
            )
    if not all(x > 0 for x in cfg.MODEL.PIXEL_STD):
        raise UserError(f"MODEL.PIXEL_STD is {list(cfg.MODEL.PIXEL_STD)}: set positive values.")


def check_pixel_statistics(cfg: CfgNode) -> list[str]:
    """Find contradictions between the image format, the pixel statistics and the weights of a config.

    A model runs with them, but its results are worse than they could be. Return one message per contradiction, which
    names the keys and their correct values. Nothing is downloaded.
    """
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if file_channels(cfg) != 3:
        # Their units are those of the files, and no published weights are for them.
        return []
    if len(mean) != len(std):
        return [
            f"MODEL.PIXEL_MEAN has {len(mean)} numbers and MODEL.PIXEL_STD {len(std)}: set one per channel in both."
        ]
    if any(0 < abs(x) <= 1 for x in mean) or (all(x < 1 for x in std) and any(mean)):
        scaled = [[round(255 * x, 3) for x in values] if max(values) <= 1 else values for values in (mean, std)]
        return [
            f"MODEL.PIXEL_MEAN {mean} and MODEL.PIXEL_STD {std} look like those of images on a scale of 0 to 1; here "
            f"pixels are 0 to 255. Set MODEL.PIXEL_MEAN {scaled[0]} and MODEL.PIXEL_STD {scaled[1]}."
        ]
    try:
        family = _family(cfg)
    except (UserError, RuntimeError):
        # Building the backbone reports what is wrong with it: timm is missing, or lacks the model or its weights.
        return []
    return _check_order(cfg) if family is None else _check_family(cfg, family)


def log_pixel_warnings(cfg: CfgNode) -> None:
    """Log the messages of :func:`check_pixel_statistics` as warnings."""
    for message in check_pixel_statistics(cfg):
        logger.warning(message)


def _family(cfg: CfgNode) -> Family | None:
    timm = cfg.MODEL.get("TIMM")
    if timm is not None and timm.NAME and cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        if not (timm.PRETRAINED or timm.WEIGHTS or cfg.MODEL.WEIGHTS):
            return None
        pretrained = import_timm(timm.NAME).get_pretrained_cfg(timm.NAME, allow_unregistered=False)
        mean, std = (tuple(round(255 * x, 4) for x in values) for values in (pretrained.mean, pretrained.std))
        return Family(f"timm's weights of {timm.NAME}", "RGB", mean, std)
    weights = cfg.MODEL.WEIGHTS
    return next((family for pattern, family in _FAMILIES_BY_PATH if re.fullmatch(pattern, weights)), None)


def _check_family(cfg: CfgNode, family: Family) -> list[str]:
    differing = []
    if family.image_format != cfg.INPUT.FORMAT:
        differing.append(("INPUT.FORMAT", cfg.INPUT.FORMAT, family.image_format))
    for key, values in (("PIXEL_MEAN", family.mean), ("PIXEL_STD", family.std)):
        if not _close(cfg.MODEL[key], values):
            differing.append((f"MODEL.{key}", list(cfg.MODEL[key]), list(values)))
    resnets = cfg.MODEL.RESNETS
    is_resnet = "resnet" in cfg.MODEL.BACKBONE.NAME and resnets.DEPTH >= 50
    if is_resnet and family.stride_in_1x1 not in (None, resnets.STRIDE_IN_1X1):
        differing.append(("MODEL.RESNETS.STRIDE_IN_1X1", resnets.STRIDE_IN_1X1, family.stride_in_1x1))
    return [f"{key} is {value}, but {family.name} were trained with {x}: set it so." for key, value, x in differing]


def _check_order(cfg: CfgNode) -> list[str]:
    """Check the order of the channels, given the means of ImageNet, for weights of unknown origin."""
    image_format, mean = cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN)
    other = {"RGB": "BGR", "BGR": "RGB"}.get(image_format)
    means = {"RGB": TORCHVISION.mean, "BGR": CAFFE2.mean}
    if other is None or not _close(mean, means[other]):
        return []
    return [
        f"INPUT.FORMAT is {image_format}, but MODEL.PIXEL_MEAN {mean} is ImageNet's in the order {other}: set "
        f"INPUT.FORMAT {other}, or reverse MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, as the weights were trained."
    ]


def _close(values: list[float], expected: tuple[float, ...]) -> bool:
    return len(values) == len(expected) and all(abs(a - b) <= _TOLERANCE for a, b in zip(values, expected, strict=True))
