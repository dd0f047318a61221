"""Images of different sizes in one tensor, and all that follows from their padding."""

from collections.abc import Sequence

import torch
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
"""Height and width."""


class PaddedBatch:
    """B images in one tensor, padded with zeros on the right and at the bottom.

    The valid size of an image is the part of the tensor, from the top left corner, that its features are computed from.
    In the original code this is the whole tensor: padding leaks into the features. Where it is the image itself,
    results do not depend on what an image is batched with.

    Args:
        tensor: (B, C, H, W).
        image_sizes: height and width of each image without padding, in pixels.
        valid_sizes: the same of the valid part. None: the whole tensor.
    """

    def __init__(self, tensor: Tensor, image_sizes: Sequence[Size], valid_sizes: Sequence[Size] | None = None):
        self.tensor = tensor
        self.size: Size = (tensor.shape[-2], tensor.shape[-1])
        self.image_sizes = tuple((height, width) for height, width in image_sizes)
        self.valid_sizes = (self.size,) * len(self.image_sizes)
        if valid_sizes is not None:
            self.valid_sizes = tuple((height, width) for height, width in valid_sizes)
        self._valid = None
        if not self.is_valid_throughout:
            # Compiled code serves all sizes: it reads them from a tensor.
            self._valid = torch.tensor(self.valid_sizes).to(tensor.device, non_blocking=True)
        self._masks: dict[int, Tensor] = {}

    @classmethod
    def from_images(cls, images: Sequence[Tensor], divisor: int = 0, square_size: int = 0) -> "PaddedBatch":
        """Pad (C, height, width) images to the largest of them.

        Args:
            images: of any sizes.
            divisor: height and width of the tensor are rounded up to a multiple of it, unless it is 0.
            square_size: height and width of the tensor, unless it is 0.
        """
        padded = ImageList.from_tensors(list(images), divisor, padding_constraints={"square_size": square_size})
        return cls(padded.tensor, padded.image_sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def is_valid_throughout(self) -> bool:
        """Whether every image's valid size is the size of the tensor."""
        return all(x == self.size for x in self.valid_sizes)

    def with_valid_sizes(self, valid_sizes: Sequence[Size]) -> "PaddedBatch":
        """Return the same images with other valid sizes, in pixels."""
        return PaddedBatch(self.tensor, self.image_sizes, valid_sizes)

    def valid_sizes_at(self, stride: int) -> tuple[Size, ...]:
        """Return each image's valid size in features of a convolutional network, whose strides round up."""
        return tuple((-(-height // stride), -(-width // stride)) for height, width in self.valid_sizes)

    def image_sizes_at(self, stride: int) -> Tensor:
        """Return (B, 2) float32 widths and heights of the unpadded images, measured in features. On the host."""
        return torch.tensor([(width, height) for height, width in self.image_sizes], dtype=torch.float32) / stride

    def padding_mask(self, size: Size, valid_sizes: Sequence[Size]) -> Tensor | None:
        """Sample the padding mask of the pixels within each image's valid size, with ``nearest`` as the original does.

        Args:
            size: height and width of the batch, in features.
            valid_sizes: of each image, in features.

        Returns:
            (B, height, width) bool, True where padded. None where nothing is, so that no attention computes with it.
        """
        size = tuple(size)
        if self.image_sizes == self.valid_sizes and all(tuple(x) == size for x in valid_sizes):
            return None
        # An image is a rectangle: each axis is sampled by itself, and nothing waits for the device.
        inside = []
        for axis in (0, 1):
            mask = torch.zeros(len(self), size[axis], dtype=torch.bool)
            rows = zip(mask, self.image_sizes, self.valid_sizes, valid_sizes, strict=True)
            for row, image, pixels, features in rows:
                valid = torch.arange(pixels[axis]) < image[axis]
                row[: features[axis]] = F.interpolate(valid[None, None].float(), size=features[axis])[0, 0] > 0
            inside.append(mask)
        rows, columns = (x.to(self.device, non_blocking=True) for x in inside)
        return ~(rows[:, :, None] & columns[:, None, :])

    def halved(self, valid_sizes: Sequence[Size]) -> tuple[Size, ...]:
        """Return the valid sizes, in features, after a convolution of stride 2."""
        return tuple(((height + 1) // 2, (width + 1) // 2) for height, width in valid_sizes)

    def zero_padding(self, x: Tensor, stride: int) -> Tensor:
        """Return (B, C, h, w) features at ``stride`` with zeros beyond the valid sizes.

        Without gradients ``x`` itself is changed.
        """
        if torch.compiler.is_compiling():
            return x * self._valid_mask(x, stride).to(x.dtype)
        if torch.is_grad_enabled():
            if stride not in self._masks:
                self._masks[stride] = self._valid_mask(x, stride).to(x.dtype)
            return x * self._masks[stride].to(x.dtype)
        for image, (height, width) in zip(x, self.valid_sizes_at(stride), strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return x

    def _valid_mask(self, x: Tensor, stride: int) -> Tensor:
        """Return (B, 1, h, w) bool, True within the valid sizes."""
        rows, columns = (
            torch.arange(size, device=x.device) < ((valid + stride - 1) // stride)[:, None]
            for size, valid in zip(x.shape[-2:], self._valid.unbind(1), strict=True)
        )
        return (rows[:, :, None] & columns[:, None])[:, None]
