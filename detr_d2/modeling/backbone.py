"""Detectron2's backbones, with the padding mask and the position embedding that DETR needs."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.modeling.resnet import enable_masked_forward, merge_frozen_norms, undilate_first_block
from detr_d2.modeling.top_down import TopDown
from detr_d2.structures import FeatureLevel, Features, PaddedBatch, Size
from detr_d2.utils.precision import without_autocast


class MaskedBackbone(nn.Module):
    """The levels of a Detectron2 backbone, with the padding mask of the coarsest.

    A padded batch is computed in one of three ways. Padded forward: the whole tensor, as in the original; padding leaks
    into the features. Masked forward, of ResNets: the padded region is set to zero before each convolution. Per-image
    forward: any other backbone, images of one size together. The last two give each image the features that it has
    alone.

    Args:
        backbone: a backbone, whose level names are kept. Its frozen norms are merged into its convolutions.
        invariant: True to make each image's features, at inference, independent of the other images in the batch.
        invariant_training: the same in training.
        top_down: joins some levels to one, which the transformer then reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        invariant: bool = False,
        invariant_training: bool = False,
        top_down: TopDown | None = None,
    ):
        super().__init__()
        merge_frozen_norms(backbone)
        # Channels last: the layout that convolutions use without reordering.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.top_down = top_down
        shapes = backbone.output_shape() if top_down is None else top_down.shapes
        # In dilated ResNets two levels have one stride, and the deeper one more channels; in a ViT all are alike, and
        # the last is the deepest.
        *finer, self.level = sorted(shapes, key=lambda name: (shapes[name].stride, shapes[name].channels))
        self.finer_levels = finer[::-1]
        self.level_channels = tuple(shapes[name].channels for name in self.finer_levels)
        self.num_channels = shapes[self.level].channels
        self.strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
        self.masked_forward = enable_masked_forward(backbone)
        convolutions = [x for x in backbone.modules() if isinstance(x, nn.Conv2d)]
        self._is_depthwise = any(1 < x.groups == x.in_channels for x in convolutions)
        self._is_invariant = {False: invariant, True: invariant_training}

    @property
    def stride(self) -> int:
        """Stride of the coarsest level, in pixels."""
        return self.strides[self.level]

    def pad(self, images: Sequence[Tensor]) -> PaddedBatch:
        """Pad (C, height, width) images, normalized, to a size that the backbone accepts; set their valid sizes."""
        constraints = self.backbone.padding_constraints
        divisor = constraints.get("size_divisibility", self.backbone.size_divisibility)
        square = constraints.get("square_size", 0)
        batch = PaddedBatch.from_images(images, divisor, square)
        if not self._is_invariant[self.training]:
            return batch
        if self.masked_forward:
            return batch.with_valid_sizes(batch.image_sizes)
        # The size that the image would be padded to alone.
        sides = [[square or _round_up(x, divisor) for x in size] for size in batch.image_sizes]
        return batch.with_valid_sizes(sides)

    def forward(self, batch: PaddedBatch) -> Features:
        """Return the features of all levels."""
        device = batch.tensor.device
        # On CPUs the gradients of depthwise convolutions can take ten times as long in bfloat16.
        in_float32 = self.training and self._is_depthwise and device.type == "cpu"
        with without_autocast(device) if in_float32 else nullcontext():
            levels = self._levels(batch)
        if self.top_down is not None:
            levels = self.top_down(levels, batch)
        tensor, valid_sizes = levels[self.level]
        mask = batch.padding_mask(tensor.shape[-2:], valid_sizes)
        finer = tuple(levels[name] for name in self.finer_levels)
        return Features(tensor, mask, batch.image_sizes_at(self.stride), valid_sizes, finer)

    def _levels(self, batch: PaddedBatch) -> dict[str, FeatureLevel]:
        dtype = next(self.backbone.parameters()).dtype
        pixels = batch.tensor.to(dtype).contiguous(memory_format=torch.channels_last)
        if batch.is_valid_throughout:
            levels = self.backbone(pixels)
            return {name: FeatureLevel(x, (tuple(x.shape[-2:]),) * len(batch)) for name, x in levels.items()}
        if self.masked_forward:
            levels = self.backbone(pixels, batch)
            return {name: FeatureLevel(x, batch.valid_sizes_at(self.strides[name])) for name, x in levels.items()}
        return per_image_forward(self.backbone, pixels, batch.valid_sizes)


def per_image_forward(backbone: Backbone, pixels: Tensor, valid_sizes: Sequence[Size]) -> dict[str, FeatureLevel]:
    """Return the features that each of (B, C, H, W) images has alone; those of one valid size are computed together."""
    groups = defaultdict(list)
    for index, size in enumerate(valid_sizes):
        groups[size].append(index)
    outputs = []
    for (height, width), indices in groups.items():
        group = pixels[torch.tensor(indices).to(pixels.device, non_blocking=True)]
        outputs.append(backbone(group[..., :height, :width].contiguous(memory_format=torch.channels_last)))
    order = torch.tensor([index for indices in groups.values() for index in indices])
    order = order.argsort().to(pixels.device, non_blocking=True)
    levels = {}
    for name in outputs[0]:
        tensors = [x[name] for x in outputs]
        sizes = {size: tuple(x.shape[-2:]) for size, x in zip(groups, tensors, strict=True)}
        levels[name] = FeatureLevel(_join(tensors)[order], tuple(sizes[x] for x in valid_sizes))
    return levels


def _join(groups: list[Tensor]) -> Tensor:
    height, width = (max(x.shape[axis] for x in groups) for axis in (-2, -1))
    return torch.cat([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in groups])


def _round_up(length: int, divisor: int) -> int:
    return length if divisor <= 1 else -(-length // divisor) * divisor


class BackboneWithPosition(nn.Sequential):
    """A masked backbone ("0") and a position embedding ("1"): the names in every published checkpoint."""

    def __init__(self, backbone: MaskedBackbone, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)

    @property
    def num_channels(self) -> int:
        return self[0].num_channels

    def forward(self, batch: PaddedBatch) -> tuple[Features, Tensor]:
        """Return the features of images and their (B or 1, hidden_dim, H, W) position embedding."""
        features = self[0](batch)
        return features, self[1](features.tensor, features.padding_mask)


def build_masked_backbone(cfg: CfgNode) -> MaskedBackbone:
    """Build the backbone that ``MODEL.BACKBONE.NAME`` names."""
    backbone = build_backbone(cfg)
    if isinstance(backbone, ResNet) and cfg.MODEL.RESNETS.RES5_DILATION == 2:
        undilate_first_block(backbone.res5)
    detr = cfg.MODEL.DETR
    names, num_blocks = detr.TOP_DOWN.LEVELS, detr.TOP_DOWN.BLOCKS
    top_down = TopDown(backbone.output_shape(), names, detr.HIDDEN_DIM, num_blocks) if names else None
    return MaskedBackbone(backbone, detr.BATCH_INVARIANT, detr.BATCH_INVARIANT_TRAINING, top_down)
