"""The two losses of the mask head, sigmoid focal and dice, of the matched pairs of the last decoder layer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detr_d2.structures import Size, Targets

MASK_LOSSES = ("loss_mask", "loss_dice")
"""Under which names a criterion returns the focal and the dice loss: those of the original."""

# Masks are compared in pixels of the image, so many at once: that bounds the memory, however many objects there are.
_AT_ONCE = 16


class MatchedPairs(NamedTuple):
    """Which query of which image answers for which object; those of an image stand together, images in order."""

    images: Tensor
    """(M,) index in the batch."""
    queries: Tensor
    """(M,)"""
    objects: Tensor
    """(M,) index among the objects of the image."""
    counts: tuple[int, ...]
    """How many pairs each image has. On the host."""


class MaskPredictor(NamedTuple):
    """Makes the masks of the matched pairs alone: those of all queries would be too many."""

    logits: Callable[[MatchedPairs], Sequence[Tensor]]
    """From M pairs to (pairs of the image, h, w) for each image."""
    num_queries: int
    frames: tuple[Size, ...]
    """For each image the height and width in pixels that (h, w) stand for, padding included."""

    def predict(self, pairs: MatchedPairs) -> Sequence[Tensor]:
        """(pairs of the image, h, w) logits for each image; of one pair that does not count where there are none."""
        if len(pairs.images):
            return self.logits(pairs)
        # Distributed training waits for a gradient of every parameter, also on a process without objects.
        first = pairs.images.new_zeros(1)
        return self.logits(MatchedPairs(first, first, first, (1, *pairs.counts[1:])))


def matched_pairs(matches: Tensor, counts: tuple[int, ...], num_queries: int) -> MatchedPairs:
    """
    Args:
        matches: (B, T), the query of each object or -1; an image has as many matched objects as it can.
        counts: how many objects each image has.
    """
    matched = tuple(min(count, num_queries) for count in counts)
    # Matched objects first: their number is known here, which they are only on the device.
    order = (matches < 0).int().argsort(dim=1, stable=True)
    images = [index for index, count in enumerate(matched) for _ in range(count)]
    ranks = [rank for count in matched for rank in range(count)]
    images, ranks = torch.tensor([images, ranks], dtype=torch.int64).to(matches.device, non_blocking=True)
    objects = order[images, ranks]
    return MatchedPairs(images, matches[images, objects], objects, matched)


def mask_losses(
    logits: Sequence[Tensor], pairs: MatchedPairs, targets: Targets, frames: Sequence[Size]
) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of the focal loss, averaged over the pixels, and of the dice loss; in float32.

    As in the original, predictions are upsampled (bilinearly) to the frame of the image, and padding in it counts as
    background.

    Args:
        logits: for each image (pairs of the image, h, w); without pairs of any.
        targets: with masks.
        frames: for each image the height and width in pixels that its logits stand for.

    Returns:
        Two scalars; without pairs zeros, which gradients of zero come from.
    """
    if not len(pairs.images):
        zero = sum((x.float() * 0).sum() for x in logits)
        return zero, zero
    sums = []
    by_image = zip(logits, pairs.objects.split(pairs.counts), targets.masks, frames, strict=True)
    for image_logits, objects, masks, frame in by_image:
        for start in range(0, len(objects), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            # What the backward pass needs is computed again there, rather than kept.
            sums.append(
                checkpoint(
                    *(_sums, image_logits[some].float(), masks[objects[some]], frame),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
    return torch.stack(sums).sum(0).unbind()


def _sums(logits: Tensor, masks: Tensor, size: Size) -> Tensor:
    logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    height, width = masks.shape[-2:]
    masks = F.pad(masks, (0, size[1] - width, 0, size[0] - height))
    logits, masks = logits.flatten(1), masks.flatten(1)
    return torch.stack((sigmoid_focal_loss(logits, masks).sum(), dice_loss(logits, masks).sum()))


def sigmoid_focal_loss(logits: Tensor, masks: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) of pixels, averaged over them.

    Args:
        logits: (N, pixels) float. masks: (N, pixels) bool.

    Returns:
        (N,)
    """
    towards_wrong = torch.where(masks, -logits, logits)
    balance = torch.where(masks, alpha, 1 - alpha)
    return (balance * towards_wrong.sigmoid() ** gamma * F.softplus(towards_wrong)).mean(1)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient (arXiv 1606.04797, section 3), both smoothed by one pixel.

    Arguments and result as for :func:`sigmoid_focal_loss`.
    """
    probability = logits.sigmoid()
    common = torch.where(masks, probability, 0.0).sum(1)
    return 1 - (2 * common + 1) / (probability.sum(1) + masks.sum(1) + 1)
