"""Detectron2's ResNet, changed in place: padding kept out of the features, frozen norms merged, published dilations.

Modules keep their parameters and names; only their classes change.
"""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.structures import PaddedBatch

# Only convolutions of more than one pixel, and the stem's pooling, mix neighboring positions.
_POINTWISE = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.Identity, nn.ReLU)


class MaskedBottleneckBlock(BottleneckBlock):
    """A bottleneck block that can set padded features to zero before its 3 x 3 convolution."""

    def forward(self, x: Tensor, batch: PaddedBatch | None = None, stride: int = 1) -> Tensor:
        """Return the features; with ``batch``, those of its valid parts. ``stride`` is that of ``x`` in pixels."""
        if batch is None:
            return super().forward(x)
        y = F.relu_(self.conv1(x))
        y = F.relu_(self.conv2(batch.zero_padding(y, stride * self.conv1.stride[0])))
        return _add_shortcut(self, x, self.conv3(y))


class MaskedBasicBlock(BasicBlock):
    """A block of two 3 x 3 convolutions that can set padded features to zero before each."""

    def forward(self, x: Tensor, batch: PaddedBatch | None = None, stride: int = 1) -> Tensor:
        """Return the features, as :meth:`MaskedBottleneckBlock.forward` does."""
        if batch is None:
            return super().forward(x)
        x = batch.zero_padding(x, stride)
        y = F.relu_(self.conv1(x))
        y = self.conv2(batch.zero_padding(y, stride * self.conv1.stride[0]))
        return _add_shortcut(self, x, y)


def _add_shortcut(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    y += x if block.shortcut is None else block.shortcut(x)
    return F.relu_(y)


class MaskedResNet(ResNet):
    """A ResNet that can compute each image of a padded batch as if it were alone."""

    def forward(self, x: Tensor, batch: PaddedBatch | None = None) -> dict[str, Tensor]:
        """Return the features of (B, C, H, W) images by level.

        With ``batch``, every convolution sees zeros beyond their valid sizes; without, the features are Detectron2's.
        """
        if batch is None:
            return super().forward(x)
        stem = self.stem.conv1
        # The pooling comes after a ReLU: zeros are as good as no values.
        x = F.relu_(batch.zero_padding(stem(x), stem.stride[0]))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        stride = self.stem.stride
        outputs = {"stem": x} if "stem" in self._out_features else {}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            for block in stage:
                x = block(x, batch, stride)
                stride *= block.stride
            if name in self._out_features:
                outputs[name] = x
        return outputs


_MASKED = {ResNet: MaskedResNet, BottleneckBlock: MaskedBottleneckBlock, BasicBlock: MaskedBasicBlock}


def enable_masked_forward(backbone: nn.Module) -> bool:
    """Enable a ResNet to keep padding out of its features, when it is called with a batch.

    Returns:
        True if it can: a :class:`ResNet` with a :class:`BasicStem`, of plain convolutions, and with norms that do not
        mix positions. Other backbones are not changed.
    """
    leaves = [x for x in backbone.modules() if not any(x.children())]
    if type(backbone) is not ResNet or type(backbone.stem) is not BasicStem:
        return False
    blocks = [block for stage in backbone.stages for block in stage]
    if not all(isinstance(x, (nn.Conv2d, *_POINTWISE)) for x in leaves) or any(type(x) not in _MASKED for x in blocks):
        return False
    for module in (backbone, *blocks):
        module.__class__ = _MASKED[type(module)]
    return True


def undilate_first_block(stage: nn.Sequential) -> None:
    """Change the dilations of a dilated stage to those of torchvision and every published DC5 model: 1, 2, 2.

    Detectron2 dilates all of a stage. The shapes of the weights are the same, the results are not.
    """
    first = stage[0]
    if isinstance(first, BottleneckBlock):
        first.conv2.dilation = (1, 1)
        first.conv2.padding = (1, 1)


def dilated_stages(depth: int, **options) -> list[nn.Sequential]:
    """Build the stages of a ResNet of bottleneck blocks whose last one is dilated instead of strided.

    Its dilations are those of :func:`undilate_first_block`. The arguments are those of ``ResNet.make_default_stages``.
    """
    *stages, last = ResNet.make_default_stages(depth, **options)
    first = last[0]
    dilated = ResNet.make_stage(
        type(first),
        len(last),
        in_channels=first.in_channels,
        out_channels=first.out_channels,
        bottleneck_channels=first.conv1.out_channels,
        stride_per_block=[1] * len(last),
        dilation_per_block=[1] + [2] * (len(last) - 1),
        **options,
    )
    return [*stages, nn.Sequential(*dilated)]


class FrozenNormConv2d(Conv2d):
    """A convolution whose frozen norm scales its weights, which are few, instead of its output; trained as before."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) normalized features."""
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm2d) or self.bias is not None or self.activation is not None:
            return super().forward(x)
        dtype = self.weight.dtype
        scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
        gain = norm.weight.to(dtype)
        shift = gain * (-norm.running_mean.to(dtype) * scale) + norm.bias.to(dtype)
        weight = self.weight * (gain * scale)[:, None, None, None]
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def merge_frozen_norms(backbone: nn.Module) -> None:
    """Change Detectron2's convolutions in ``backbone`` to apply frozen norms to their weights, in every forward pass.

    Weights and norms stay apart, with the names of all checkpoints, and the weights can be trained. A model that only
    predicts folds them permanently: :func:`detr_d2.inference.optimize_for_inference`.
    """
    for module in backbone.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
