"""Models of the timm library (github.com/huggingface/pytorch-image-models) as backbones."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from detr_d2.checkpoint import allow_original_checkpoints
from detr_d2.modeling.timm_weights import read_renamed
from detr_d2.utils.errors import UserError
from detr_d2.utils.timm_models import import_timm

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """Feature levels of a timm model.

    A level is named as in Detectron2's ResNets, "res" and the binary logarithm of its stride ("res5": stride 32), where
    every level of the model has a stride of its own; else "level" and its index.

    Args:
        name: name of the model, with the tag of its weights: "resnet50.a1_in1k".
        pretrained: True to download the weights that timm publishes under the name.
        weights: a file or URL of weights to start from instead: ``.pth``, ``.safetensors``, or for BiT and ViT models
            the ``.npz`` of their authors; see also :func:`~detr_d2.modeling.timm_weights.read_renamed`.
        out_indices: feature levels to return, 0 being the finest; negative ones count from the last.
        freeze_at: logarithm of a stride, ``MODEL.BACKBONE.FREEZE_AT``: every layer up to the last of stride
            2**freeze_at or finer is frozen. 2 freezes the stem and the first stage of a ResNet, 0 nothing.
        frozen_bn: True to keep the statistics, scales and shifts of batch norms fixed.
        in_channels: number of channels of the images.
        arguments: more arguments of ``timm.create_model``.

    Raises:
        UserError: timm is missing, or an argument is not valid; names the config key.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        weights: str = "",
        out_indices: Sequence[int] = (-1,),
        freeze_at: int = 0,
        frozen_bn: bool = True,
        in_channels: int = 3,
        arguments: dict[str, Any] | None = None,
    ):
        super().__init__()
        features = {"features_only": True, "out_indices": tuple(out_indices), "in_chans": in_channels}
        options = {**(arguments or {}), **features}
        self.body = _create_from_file(name, weights, options) if weights else _create(name, pretrained, options)
        if frozen_bn:
            self.body = import_timm().layers.freeze_batch_norm_2d(self.body)
        levels = list(self.body.feature_info.info)
        chosen = [x % len(levels) for x in self.body.feature_info.out_indices]
        _remove_unused_blocks(self.body, [levels[i]["module"] for i in chosen])
        names = _level_names([x["reduction"] for x in levels])
        self._out_features = [names[i] for i in chosen]
        self._out_feature_strides = {names[i]: levels[i]["reduction"] for i in chosen}
        self._out_feature_channels = {names[i]: levels[i]["num_chs"] for i in chosen}
        # Swin and similar models return channels last.
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self._size_divisibility = _patch_size(self.body)
        if freeze_at:
            _freeze(self.body, levels[: max(chosen) + 1], freeze_at, name)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        timm = cfg.MODEL.TIMM
        if not timm.NAME:
            raise UserError(
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} needs MODEL.TIMM.NAME: a model of timm, such as "
                "resnet50.a1_in1k; timm.list_models() has them all."
            )
        # A checkpoint of the whole model replaces the backbone's own weights: skip the download.
        start = not cfg.MODEL.WEIGHTS
        return {
            "name": timm.NAME,
            "pretrained": timm.PRETRAINED and start,
            "weights": timm.WEIGHTS if start else "",
            "out_indices": timm.OUT_INDICES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "frozen_bn": timm.FROZEN_BN,
            "in_channels": input_shape.channels,
            "arguments": dict(timm.ARGS),
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the chosen levels of (B, C, H, W) images by name, each (B, channels, H / stride, W / stride)."""
        features = self.body(images)
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self._out_features, features, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone that ``MODEL.TIMM`` describes."""
    return TimmBackbone(cfg, input_shape)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    timm = import_timm(name)
    # timm raises many kinds of exceptions for wrong arguments, tensors that don't fit, and failed downloads.
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as e:
        ours = ("features_only", "pretrained_cfg_overlay")
        used = ", ".join(f"{key}={x!r}" for key, x in options.items() if key not in ours)
        raise UserError(
            f"MODEL.TIMM.NAME {name}: timm can't build a backbone from it with pretrained={pretrained}, {used} "
            f"({type(e).__name__}: {str(e)[:500]}). Check MODEL.TIMM.PRETRAINED, WEIGHTS, OUT_INDICES and ARGS."
        ) from e
    finally:
        # When timm has read a file, it removes argparse.Namespace from the types that PyTorch allows.
        allow_original_checkpoints()


def _create_from_file(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    try:
        file = PathManager.get_local_path(weights)
    except Exception as e:  # every handler of PathManager has errors of its own
        raise UserError(f"MODEL.TIMM.WEIGHTS {weights} can't be downloaded ({type(e).__name__}: {e}).") from e
    if not Path(file).is_file():
        raise UserError(f"MODEL.TIMM.WEIGHTS {weights} does not exist: check the path.")
    renamed = read_renamed(file)
    custom_load = Path(file).suffix == ".npz"
    source = {"file": file, "custom_load": custom_load} if renamed is None else {"state_dict": renamed}
    # timm loads the tensors that fit and leaves the others as initialized: equal in a second model of the same seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        filled = _create(name, True, {**options, "pretrained_cfg_overlay": source})
        torch.manual_seed(0)
        blank = _create(name, False, options)
    initial = {path: x for path, x in blank.named_parameters() if x.dim() > 1 and x.min() < x.max()}
    missing = [path for path, x in filled.named_parameters() if path in initial and torch.equal(x, initial[path])]
    if missing:
        raise UserError(
            f"MODEL.TIMM.WEIGHTS {weights} lacks {len(missing)} of {len(initial)} weights of MODEL.TIMM.NAME {name}, "
            f"such as {missing[0]}: set the name of the model that the file was saved from."
        )
    return filled


def _level_names(strides: list[int]) -> list[str]:
    powers = [math.log2(x) for x in strides]
    if len(set(strides)) == len(strides) and all(x.is_integer() for x in powers):
        return [f"res{int(x)}" for x in powers]
    return [f"level{i}" for i in range(len(strides))]


def _remove_unused_blocks(body: nn.Module, chosen: list[str]) -> None:
    """Remove the blocks after the last chosen level, which timm's EfficientNets and MobileNets would compute."""
    blocks = getattr(body, "blocks", None)
    if isinstance(blocks, nn.Sequential) and all(name.removeprefix("blocks.").isdigit() for name in chosen):
        body.blocks = blocks[: max(int(name.removeprefix("blocks.")) for name in chosen) + 1]


def _patch_size(body: nn.Module) -> int:
    """Return the divisor of image sides: the patch size of a transformer that does not pad by itself; else 0."""
    for module in body.modules():
        patch = getattr(module, "patch_size", None)
        if patch is not None and hasattr(module, "dynamic_img_pad"):
            return 0 if module.dynamic_img_pad else max(patch)
    return 0


def _freeze(body: nn.Module, levels: list[dict[str, Any]], freeze_at: int, name: str) -> None:
    inside = [x["module"] for x in levels if x["reduction"] <= 2**freeze_at]
    last = _module_name(body, inside[-1]) if inside else None
    if last is None:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {name} has no layer that is known to be the last of stride "
            f"{2**freeze_at}; its levels have strides {[x['reduction'] for x in levels]}. Set FREEZE_AT 0."
        )
    # timm registers modules in the order in which they run.
    reached, frozen = False, 0
    for path, module in body.named_modules():
        part_of_last = path == last or path.startswith(f"{last}.")
        if reached and not part_of_last:
            break
        reached = reached or part_of_last
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
            frozen += 1
    counts = (frozen, sum(1 for _ in body.parameters()))
    logger.info("MODEL.BACKBONE.FREEZE_AT %d: %d of %d parameters of %s are fixed", freeze_at, *counts, name)


def _module_name(body: nn.Module, path: str) -> str | None:
    """Return the feature extractor's name of timm's module ``path``: "stages.0" may be "stages_0"."""
    modules = dict(body.named_modules())
    return next((x for x in (path, path.replace(".", "_"), f"model.{path}") if x in modules), None)
