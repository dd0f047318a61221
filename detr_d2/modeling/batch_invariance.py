"""Features of padded batches: as the backbone gives them, or as it would give them for each image alone."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.structures import Size

# Nothing but convolutions of more than one pixel, and the stem's pooling, brings neighbours into a feature.
_POINTWISE = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.Identity, nn.ReLU)


class FramedFeatures(NamedTuple):
    """A backbone's output for B images, and which part of it is whose.

    An image's frame is what its results come from: the top left corner of the batch, with the image in it.
    """

    levels: dict[str, Tensor]
    """By name (B, C, H, W)."""
    frames: tuple[Size, ...]
    """Height and width of each image's frame in pixels."""
    level_frames: dict[str, tuple[Size, ...]]
    """The same in features of each level."""


class Extractor:
    """Gives the features of a batch."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def __call__(self, images: ImageList) -> FramedFeatures:
        raise NotImplementedError

    def resumption(self) -> Callable[[], AbstractContextManager]:
        """Makes contexts in which blocks of the backbone that run again do what they would do now."""
        return nullcontext


class WholeBatch(Extractor):
    """As in the original: every image's frame is the whole batch, with the padding in it.

    The padding is zeros in the image, but no longer after the first normalisation: it shines into the image's features.
    """

    def __call__(self, images: ImageList) -> FramedFeatures:
        levels = self.backbone(images.tensor)
        count = len(images)
        level_frames = {name: (tuple(x.shape[-2:]),) * count for name, x in levels.items()}
        return FramedFeatures(levels, (tuple(images.tensor.shape[-2:]),) * count, level_frames)


class ZeroedPadding(Extractor):
    """Of each image what it would be alone: whatever a convolution sees beyond the image's border is zero.

    For ResNets whose norms don't mix positions.
    """

    def __init__(self, backbone: ResNet):
        super().__init__(backbone)
        self.strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
        self._inside: _Inside | None = None
        for convolution, stride in _convolutions(backbone):
            if max(convolution.kernel_size) > 1:
                convolution.register_forward_pre_hook(partial(self._before_convolution, stride))
        # It is followed by the pooling, which is no module. With ReLU between, zeros there are as good as nothing.
        stem = backbone.stem.conv1
        stem.register_forward_hook(partial(self._after_convolution, stem.stride[0]))

    @staticmethod
    def serves(backbone: Backbone) -> bool:
        """Whether this works for ``backbone``."""
        leaves = (x for x in backbone.modules() if not any(x.children()))
        known = all(isinstance(x, (nn.Conv2d, *_POINTWISE)) for x in leaves)
        return isinstance(backbone, ResNet) and isinstance(backbone.stem, BasicStem) and known

    def __call__(self, images: ImageList) -> FramedFeatures:
        self._inside = _Inside(images)
        try:
            levels = self.backbone(images.tensor)
        finally:
            self._inside = None
        frames = tuple(tuple(size) for size in images.image_sizes)
        level_frames = {
            name: tuple((-(-height // stride), -(-width // stride)) for height, width in frames)
            for name, stride in self.strides.items()
        }
        return FramedFeatures(levels, frames, level_frames)

    def resumption(self) -> Callable[[], AbstractContextManager]:
        # They see the padding of now.
        return partial(self._within, self._inside)

    @contextmanager
    def _within(self, inside: "_Inside | None") -> Iterator[None]:
        self._inside, before = inside, self._inside
        try:
            yield
        finally:
            self._inside = before

    def _before_convolution(self, stride: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self._inside is None else (self._inside.of(inputs[0], stride),)

    def _after_convolution(
        self, stride: int, module: nn.Module, inputs: tuple[Tensor], output: Tensor
    ) -> Tensor | None:
        return None if self._inside is None else self._inside.of(output, stride)


def _convolutions(backbone: ResNet) -> Iterator[tuple[nn.Conv2d, int]]:
    """Those of the stem and of the blocks' main branches, each with the stride, in pixels, of what it sees."""
    yield backbone.stem.conv1, 1
    stride = backbone.stem.stride
    for block in (block for stage in backbone.stages for block in stage):
        inner_stride = stride
        for convolution in (getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)):
            yield convolution, inner_stride
            inner_stride *= convolution.stride[0]
        stride *= block.stride


class _Inside:
    """Zeroes what lies beyond the images, at any stride."""

    def __init__(self, images: ImageList):
        self.image_sizes = images.image_sizes
        self._heights, self._widths = (
            torch.tensor(x).to(images.device, non_blocking=True) for x in zip(*images.image_sizes, strict=True)
        )
        self._masks: dict[int, Tensor] = {}

    def of(self, x: Tensor, stride: int) -> Tensor:
        """``x``, changed in place unless somebody may still need it as it is."""
        # Compiled code is for any sizes: it must see none of them but in tensors.
        if torch.compiler.is_compiling():
            return x * self._mask(x, stride).to(x.dtype)
        if torch.is_grad_enabled():
            if stride not in self._masks:
                self._masks[stride] = self._mask(x, stride).to(x.dtype)
            return x * self._masks[stride].to(x.dtype)
        for one, (height, width) in zip(x, self.image_sizes, strict=True):
            one[:, -(-height // stride) :] = 0
            one[:, :, -(-width // stride) :] = 0
        return x

    def _mask(self, x: Tensor, stride: int) -> Tensor:
        """(B, 1, H, W) bool, True in the images."""
        rows, columns = (
            torch.arange(size, device=x.device) < ((extents + stride - 1) // stride)[:, None]
            for size, extents in zip(x.shape[-2:], (self._heights, self._widths), strict=True)
        )
        return (rows[:, :, None] & columns[:, None])[:, None]


class EachAlone(Extractor):
    """Of each image what it would be alone, of any backbone: images of one size go through it together."""

    def __call__(self, images: ImageList) -> FramedFeatures:
        frames = tuple(self._frame(size) for size in images.image_sizes)
        groups = defaultdict(list)
        for index, frame in enumerate(frames):
            groups[frame].append(index)
        outputs = []
        for (height, width), indices in groups.items():
            group = images.tensor[torch.tensor(indices).to(images.device, non_blocking=True)]
            outputs.append(self.backbone(group[..., :height, :width]))
        order = torch.tensor([index for indices in groups.values() for index in indices])
        back = order.argsort().to(images.device, non_blocking=True)
        sizes = {
            name: {frame: tuple(output[name].shape[-2:]) for frame, output in zip(groups, outputs, strict=True)}
            for name in outputs[0]
        }
        levels = {name: _pad_and_join([x[name] for x in outputs])[back] for name in sizes}
        return FramedFeatures(levels, frames, {name: tuple(x[frame] for frame in frames) for name, x in sizes.items()})

    def _frame(self, size: Size) -> Size:
        square = self.backbone.padding_constraints.get("square_size", 0)
        divisor = max(self.backbone.size_divisibility, 1)
        return tuple(square or -(-x // divisor) * divisor for x in size)


def _pad_and_join(groups: list[Tensor]) -> Tensor:
    height, width = (max(x.shape[axis] for x in groups) for axis in (-2, -1))
    return torch.cat([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in groups])


def invariant_extractor(backbone: Backbone) -> Extractor:
    """What gives the features of each image of a batch as if it were alone, as fast as ``backbone`` allows."""
    return ZeroedPadding(backbone) if ZeroedPadding.serves(backbone) else EachAlone(backbone)
