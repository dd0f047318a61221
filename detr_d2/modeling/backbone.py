"""Detectron2's backbones, with the padding mask and the position embedding that DETR needs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.modeling.batch_invariance import WholeBatch, invariant_extractor
from detr_d2.modeling.frozen_norm import merge_frozen_norms
from detr_d2.structures import Size


class Features(NamedTuple):
    """One level of image features."""

    tensor: Tensor
    """(B, C, H, W)"""
    padding_mask: Tensor | None
    """(B, H, W) bool, True where padded; None when the images of the batch are of one size."""
    extents: Tensor
    """(B, 2) float32 width and height of the unpadded images, measured in features. On the host."""
    levels: tuple[Tensor, ...] = ()
    """The backbone's other levels, coarse to fine, as far as it gives them."""
    frames: tuple[Size, ...] = ()
    level_frames: tuple[tuple[Size, ...], ...] = ()
    """See :class:`~detr_d2.structures.MaskFeatures`."""


class MaskedBackbone(nn.Module):
    """The coarsest level of a Detectron2 backbone, with its padding mask, and the finer levels."""

    def __init__(self, backbone: Backbone, invariant: bool = False, invariant_training: bool = False):
        """
        Args:
            backbone: its levels' names are kept.
            invariant: at inference, each image's features don't depend on what it is batched with.
            invariant_training: the same in training.
        """
        super().__init__()
        # Channels last: what convolutions take without reordering.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        shapes = backbone.output_shape()
        # In dilated ResNets two levels have one stride, and the deeper one more channels; in a ViT all are alike, and
        # the last is the deepest.
        *finer, self.level = sorted(shapes, key=lambda name: (shapes[name].stride, shapes[name].channels))
        self.finer_levels = finer[::-1]
        self.level_channels = tuple(shapes[name].channels for name in self.finer_levels)
        self.num_channels = shapes[self.level].channels
        self.stride = shapes[self.level].stride
        self._whole_batch = WholeBatch(backbone)
        self._invariant = invariant_extractor(backbone) if invariant or invariant_training else self._whole_batch
        self._is_invariant = {False: invariant, True: invariant_training}

    def forward(self, images: ImageList) -> Features:
        extract = self._invariant if self._is_invariant[self.training] and _is_padded(images) else self._whole_batch
        pixels = images.tensor.contiguous(memory_format=torch.channels_last)
        levels, frames, level_frames = extract(ImageList(pixels, images.image_sizes))
        features = levels[self.level]
        sizes = torch.tensor([(width, height) for height, width in images.image_sizes], dtype=torch.float32)
        return Features(
            features,
            padding_mask(images, frames, level_frames[self.level], features.shape[-2:]),
            sizes / self.stride,
            tuple(levels[name] for name in self.finer_levels),
            frames,
            tuple(level_frames[name] for name in (self.level, *self.finer_levels)),
        )

    def resumption(self) -> Callable[[], AbstractContextManager]:
        """Makes contexts in which blocks of the backbone that run again do what they would do now."""
        return self._invariant.resumption()


class BackboneWithPosition(nn.Sequential):
    """A masked backbone ("0") and a position embedding ("1"): the names in every published checkpoint."""

    def __init__(self, backbone: MaskedBackbone, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)

    @property
    def num_channels(self) -> int:
        return self[0].num_channels

    def forward(self, images: ImageList) -> tuple[Features, Tensor]:
        """Images -> their features and the (B or 1, hidden_dim, H, W) position embedding."""
        features = self[0](images)
        return features, self[1](features.tensor, features.padding_mask)


def padding_mask(
    images: ImageList, frames: Sequence[Size], level_frames: Sequence[Size], size: torch.Size
) -> Tensor | None:
    """The pixels' padding mask, sampled in each image's frame with ``nearest``, as the original does in the batch.

    Args:
        frames: of each image in pixels. level_frames: the same in features.
        size: height and width of the batch in features.

    Returns:
        (B, H, W) bool, True where padded; None when nothing is, so that nobody computes with it.
    """
    inside_frames = all(tuple(x) == tuple(frame) for x, frame in zip(images.image_sizes, frames, strict=True))
    if inside_frames and all(tuple(frame) == tuple(size) for frame in level_frames):
        return None
    # An image is a rectangle: each axis is sampled alone, and nothing waits for the device.
    inside = []
    for axis in (0, 1):
        mask = torch.zeros(len(frames), size[axis], dtype=torch.bool)
        for row, extent, frame, features in zip(mask, images.image_sizes, frames, level_frames, strict=True):
            pixels = torch.arange(frame[axis]) < extent[axis]
            row[: features[axis]] = F.interpolate(pixels[None, None].float(), size=features[axis])[0, 0] > 0
        inside.append(mask)
    rows, columns = (x.to(images.device, non_blocking=True) for x in inside)
    return ~(rows[:, :, None] & columns[:, None, :])


def _is_padded(images: ImageList) -> bool:
    padded_size = tuple(images.tensor.shape[-2:])
    return any(tuple(size) != padded_size for size in images.image_sizes)


def build_masked_backbone(cfg: CfgNode) -> MaskedBackbone:
    """Build the backbone that ``MODEL.BACKBONE.NAME`` names."""
    backbone = build_backbone(cfg)
    if isinstance(backbone, ResNet) and cfg.MODEL.RESNETS.RES5_DILATION == 2:
        _undilate_first_block(backbone.res5)
    merge_frozen_norms(backbone)
    detr = cfg.MODEL.DETR
    return MaskedBackbone(backbone, detr.BATCH_INVARIANT, detr.BATCH_INVARIANT_TRAINING)


def _undilate_first_block(stage: nn.Sequential) -> None:
    # torchvision, and so every published DC5 model, dilates a stage from its second block on;
    # Detectron2 dilates all of it. The weights' shapes are the same, the results are not.
    first = stage[0]
    if isinstance(first, BottleneckBlock):
        first.conv2.dilation = (1, 1)
        first.conv2.padding = (1, 1)
