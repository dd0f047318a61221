"""From mask logits to masks of the image's size."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Masks at once, so that the numbers between logits and masks stay few.
_AT_ONCE = 4


def resized_masks(
    logits: Tensor,
    *,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    threshold: float = 0.5,
) -> Tensor:
    """Masks in the pixels of the result.

    The same as in the original, in one step: it resizes (bilinearly) to the padded images, applies the threshold, cuts
    the padding off, and resizes (to the nearest pixel) to the result. Only the pixels that the result takes are
    computed here. Sizes are (height, width) in pixels.

    Args:
        logits: (N, h, w) over the padded image.
        padded_size: of the images in the batch. image_size: of this one, without padding. output_size: of the result.
        threshold: a pixel belongs to a mask if its probability is higher.

    Returns:
        (N, H, W) bool on the logits' device.
    """
    rows, columns = (
        _Samples(*sizes, logits.device)
        for sizes in zip(logits.shape[1:], padded_size, image_size, output_size, strict=True)
    )
    masks = torch.empty((len(logits), *output_size), dtype=torch.bool, device=logits.device)
    least = math.log(threshold / (1 - threshold))
    for some, out in zip(logits.split(_AT_ONCE), masks.split(_AT_ONCE), strict=True):
        # First along x, while the rows are few.
        x = some.float()
        x = torch.lerp(x[..., columns.low], x[..., columns.high], columns.weight)
        x = torch.lerp(x[:, rows.low], x[:, rows.high], rows.weight[:, None])
        torch.gt(x, least, out=out)
    return masks


class QueryMasks:
    """The mask logits of one image's object queries, made when they are asked for, and once."""

    def __init__(self, make: Callable[[Tensor], Tensor], num_queries: int, device: torch.device):
        """
        Args:
            make: from (N,) int64 queries, N > 0, no two alike, to (N, h, w) logits.
            num_queries: of the model.
        """
        self._make = make
        self._logits: Tensor | None = None
        self._rows = torch.full((num_queries,), -1, device=device)

    def __call__(self, queries: Tensor) -> Tensor:
        """(M,) int64 queries, M > 0, in any order and repeated as may be, to (M, h, w) logits."""
        new = queries.unique()
        new = new[self._rows[new] < 0]
        if len(new):
            made = self._make(new)
            known = 0 if self._logits is None else len(self._logits)
            self._rows[new] = torch.arange(known, known + len(new), device=new.device)
            self._logits = torch.cat((self._logits, made)) if known else made
        return self._logits[self._rows[queries]]


class _Samples:
    """Along one axis, which two logits every pixel of the result lies between, and where."""

    def __init__(self, size: int, padded_size: int, image_size: int, output_size: int, device: torch.device):
        pixels = torch.arange(image_size, dtype=torch.float32)[None, None]
        pixels = F.interpolate(pixels, size=output_size, mode="nearest")[0, 0]
        position = ((pixels + 0.5) * (size / padded_size) - 0.5).clamp(min=0)
        low = position.long().clamp(max=size - 1)
        self.low = low.to(device, non_blocking=True)
        self.high = (low + 1).clamp(max=size - 1).to(device, non_blocking=True)
        self.weight = (position - low).to(device, non_blocking=True)
