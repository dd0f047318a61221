"""Padding kept out of the features of any convolutional backbone: what an exported network needs to serve batches."""

from detectron2.modeling import Backbone
from torch import Tensor, nn, no_grad, randn

from detr_d2.modeling.backbone import MaskedBackbone
from detr_d2.structures import SizedBatch
from detr_d2.utils.errors import UserError

_SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
# Sides of trial images: the features of the second have odd and even sides on the way down.
_TRIAL = (128, 160), (75, 101)
_TOLERANCE = 1e-4


class MaskedForward(nn.Module):
    """A backbone whose convolutions and poolings see zeros beyond the valid sizes.

    Args:
        backbone: the backbone.
        strides: stride of the input of each layer that mixes positions, by the layer's name.
    """

    def __init__(self, backbone: Backbone, strides: dict[str, int]):
        super().__init__()
        self.backbone = backbone
        self.strides = strides

    def forward(self, pixels: Tensor, batch: SizedBatch) -> dict[str, Tensor]:
        """Return the features of (B, C, H, W) images by level."""

        def zero(stride: int):
            return lambda layer, inputs: (batch.zero_padding(inputs[0], stride), *inputs[1:])

        layers = dict(self.backbone.named_modules())
        hooks = [layers[name].register_forward_pre_hook(zero(stride)) for name, stride in self.strides.items()]
        try:
            return self.backbone(pixels)
        finally:
            for hook in hooks:
                hook.remove()


class PlainForward(nn.Module):
    """A backbone for batches whose images all have one size."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor, batch: SizedBatch) -> dict[str, Tensor]:
        """Return the features of (B, C, H, W) images by level."""
        return self.backbone(pixels)


def keep_padding_out(masked: MaskedBackbone, channels: int = 3) -> bool:
    """Change ``masked``, in place, to compute padded batches with the masked forward alone.

    Images have ``channels``.

    Returns:
        True if each image of a padded batch gets the features that it has alone. False if the backbone mixes all
        positions, as transformers do, or pads by itself: then the images of a batch must have one size.

    Raises:
        UserError: the backbone accepts images of one size only.
    """
    if masked.masked_forward:
        return True
    backbone = masked.backbone
    masked.masked_forward = True
    masked.backbone = PlainForward(backbone)
    if backbone.padding_constraints.get("square_size"):
        return False
    divisor = max(1, backbone.size_divisibility)
    try:
        zeroed = MaskedForward(backbone, _input_strides(backbone, divisor, channels))
        if divisor > 1 or not _is_invariant(zeroed, channels):
            return False
    except (AssertionError, RuntimeError, ValueError) as e:
        raise UserError(
            f"The backbone does not accept images of any size ({e}), which an exported model needs: choose another, or "
            "for timm's transformers train with MODEL.TIMM.ARGS {dynamic_img_size: True}."
        ) from e
    masked.backbone = zeroed
    return True


@no_grad()
def _input_strides(backbone: Backbone, divisor: int, channels: int) -> dict[str, int]:
    """Return the stride of the input of each layer that mixes positions, as the ratio of sizes in a trial.

    Sides of images are multiples of ``divisor``.
    """
    strides: dict[str, int] = {}
    height, width = (-(-side // divisor) * divisor for side in _TRIAL[0])

    def record(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            strides[name] = height // inputs[0].shape[-2]

        return hook

    layers = [(name, x) for name, x in backbone.named_modules() if isinstance(x, _SPATIAL) and _mixes_positions(x)]
    hooks = [x.register_forward_pre_hook(record(name)) for name, x in layers]
    try:
        backbone(randn(1, channels, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return strides


def _mixes_positions(layer: nn.Module) -> bool:
    return layer.kernel_size not in (1, (1, 1))


@no_grad()
def _is_invariant(backbone: MaskedForward, channels: int) -> bool:
    """Check on a padded image whether its features are those that it has alone."""
    pixels = randn(2, channels, *_TRIAL[0])
    height, width = _TRIAL[1]
    alone = backbone.backbone(pixels[1:, :, :height, :width].contiguous())
    sizes = pixels.new_tensor(_TRIAL).long()
    batch = SizedBatch(pixels, sizes)
    padded = backbone(batch.tensor, batch)
    for name, expected in alone.items():
        found = padded[name][1:, :, : expected.shape[-2], : expected.shape[-1]]
        if (found - expected).abs().max() > _TOLERANCE * expected.abs().max().clamp(min=1):
            return False
    return True
