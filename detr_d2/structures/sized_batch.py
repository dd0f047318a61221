"""A padded batch whose sizes are a tensor, so that a traced or exported network serves all sizes and batches."""

from collections.abc import Sequence

from torch import Tensor, arange
from torch.nn import functional as F

from detr_d2.structures.padded_batch import PaddedBatch, Size


class SizedBatch(PaddedBatch):
    """B images in one tensor, whose valid sizes are the images themselves.

    Everything that follows from the padding is computed from the sizes with tensor operations, also where nothing is
    padded: nothing depends on their values. A valid size is not a tuple here but a row of a (B, 2) tensor.

    Args:
        tensor: (B, C, H, W) normalized images. What they hold beyond their sizes is set to zero.
        sizes: (B, 2) int64 height and width of each image, in pixels.
    """

    is_valid_throughout = False

    def __init__(self, tensor: Tensor, sizes: Tensor):
        self.size: Size = tensor.shape[-2:]
        self.image_sizes = self.valid_sizes = sizes
        self.tensor = tensor
        self.tensor = self.zero_padding(tensor, 1)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def valid_sizes_at(self, stride: int) -> Tensor:
        """Return the (B, 2) int64 height and width of each image in features, whose strides round up."""
        return (self.image_sizes + (stride - 1)) // stride

    def image_sizes_at(self, stride: int) -> Tensor:
        """Return (B, 2) float32 widths and heights of the images, measured in features."""
        return self.image_sizes.flip(1).float() / stride

    def padding_mask(self, size: Size, valid_sizes: Tensor) -> Tensor:
        """Return (B, height, width) bool, True where padded, for features of ``size``."""
        return ~self._inside(size, valid_sizes)

    def halved(self, valid_sizes: Tensor) -> Tensor:
        """Return the (B, 2) valid sizes, in features, after a convolution of stride 2."""
        return (valid_sizes + 1) // 2

    def zero_padding(self, x: Tensor, stride: int) -> Tensor:
        """Return (B, C, h, w) features at ``stride`` with zeros beyond the valid sizes."""
        mask = self.valid_mask(x.shape[-2:], stride).to(x.dtype)
        # The convolution, by 1, tells OpenVINO that the mask is channels last, as the features. Without it, features of
        # any size are reordered before and after each product, which takes an eighth of an R50's time.
        return x * F.conv2d(mask, mask.new_ones(1, 1, 1, 1))

    def valid_mask(self, size: Sequence[int], stride: int) -> Tensor:
        """Return (B, 1, h, w) bool, True within the valid sizes, for features of ``size`` at ``stride``."""
        return self._inside(size, self.valid_sizes_at(stride))[:, None]

    def _inside(self, size: Sequence[int], valid_sizes: Tensor) -> Tensor:
        rows, columns = (
            arange(length, device=valid_sizes.device) < valid[:, None]
            for length, valid in zip(size, valid_sizes.unbind(1), strict=True)
        )
        return rows[:, :, None] & columns[:, None]
