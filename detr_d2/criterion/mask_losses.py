"""The two losses of the mask head, sigmoid focal and dice, of the matched pairs of the last decoder layer."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detr_d2.criterion.class_losses import sigmoid_focal_loss
from detr_d2.structures import Size, Targets

MASK_LOSSES = ("loss_mask", "loss_dice")
"""Names of the focal and the dice loss, as in the original."""

# Masks are compared in pixels of the image, this many at a time: that bounds the memory.
_CHUNK = 16


class MatchedPairs(NamedTuple):
    """The matched pairs of each image."""

    queries: tuple[Tensor, ...]  # (M,) int64 queries of each image.
    objects: tuple[Tensor, ...]  # (M,) int64 indices of the objects that they are matched with.

    @property
    def total(self) -> int:
        """Number of pairs in all images."""
        return sum(len(x) for x in self.queries)


class MatchedMasks(NamedTuple):
    """The predicted masks of the matched pairs."""

    pairs: MatchedPairs
    logits: Sequence[Tensor]  # (M, h, w) logits of each image, over its valid size; of any query if there are no pairs.
    sizes: Sequence[Size]  # Valid size of each image in pixels; see :class:`~detr_d2.structures.PaddedBatch`.


def matched_pairs(matches: Tensor, counts: Sequence[int], num_queries: int) -> MatchedPairs:
    """Return the pairs of one decoder layer.

    ``matches`` (B, T) are the query of each object, or -1; as many objects of an image are matched as possible.
    ``counts`` are the numbers of objects.
    """
    # Matched objects first: how many there are is known here, but which ones only on the device.
    order = (matches < 0).int().argsort(dim=1, stable=True)
    matched = [min(count, num_queries) for count in counts]
    objects = tuple(row[:count] for row, count in zip(order, matched, strict=True))
    queries = tuple(row[index] for row, index in zip(matches, objects, strict=True))
    return MatchedPairs(queries, objects)


def mask_losses(masks: MatchedMasks, targets: Targets) -> tuple[Tensor, Tensor]:
    """Compute the sums over the pairs of the focal loss, averaged over pixels, and of the dice loss; in float32.

    As in the original, predictions are upsampled (bilinearly) to the valid size, and padding in it is background.
    Without pairs both are zeros with gradients of zero.
    """
    if not masks.pairs.total:
        zero = sum((x.float() * 0).sum() for x in masks.logits)
        return zero, zero
    sums = []
    # The backward pass computes activations again instead of keeping them.
    options = {"use_reentrant": False, "preserve_rng_state": False}
    images = zip(masks.logits, masks.pairs.objects, targets.masks, masks.sizes, strict=True)
    for logits, objects, bitmaps, size in images:
        for some_logits, some_objects in zip(logits.split(_CHUNK), objects.split(_CHUNK), strict=True):
            if len(some_objects):
                sums.append(checkpoint(_sums, some_logits.float(), bitmaps[some_objects], size, **options))
    return torch.stack(sums).sum(0).unbind()


def _sums(logits: Tensor, masks: Tensor, size: Size) -> Tensor:
    logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    height, width = masks.shape[-2:]
    masks = F.pad(masks, (0, size[1] - width, 0, size[0] - height))
    logits, masks = logits.flatten(1), masks.flatten(1)
    return torch.stack((sigmoid_focal_loss(logits, masks).mean(1).sum(), dice_loss(logits, masks).sum()))


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return (N,) one minus the Dice coefficient (arXiv 1606.04797, section 3), both sums smoothed by one pixel.

    ``logits`` and ``masks``, which are bool, are (N, pixels).
    """
    probability = logits.sigmoid()
    common = torch.where(masks, probability, 0.0).sum(1)
    return 1 - (2 * common + 1) / (probability.sum(1) + masks.sum(1) + 1)
