"""What the rooms hand to each other."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detr_d2.utils.box_ops import xyxy_to_cxcywh

# A padding box must have an area: overlaps with it are computed, then dropped, and must stay finite.
_PADDING_BOX = (0.5, 0.5, 1.0, 1.0)


Size = tuple[int, int]
"""Height and width."""


class MaskFeatures(NamedTuple):
    """What the masks of any query of B images are made from."""

    hidden: Tensor
    """(B, Q, C) output of the last decoder layer."""
    source: Tensor
    """(B, C, H, W) projected features of the backbone's coarsest level."""
    memory: Tensor
    """(B, C, H, W) output of the encoder."""
    padding_mask: Tensor | None
    """(B, H, W) bool, True where padded; None when nothing is."""
    levels: tuple[Tensor, ...]
    """The backbone's finer levels, coarse to fine, each (B, channels of the level, h, w)."""
    frames: tuple[Size, ...]
    """For each image the size in pixels of the part of the batch that its features stand for."""
    level_frames: tuple[tuple[Size, ...], ...]
    """The same in features: of the coarsest level, then of the finer ones."""

    def of_image(self, index: int) -> "MaskFeatures":
        """Those of one image and its frame, as a batch of one."""
        own = [level[index] for level in self.level_frames]

        def cut(x: Tensor, size: Size) -> Tensor:
            return x[index : index + 1, ..., : size[0], : size[1]]

        return MaskFeatures(
            self.hidden[index : index + 1],
            cut(self.source, own[0]),
            cut(self.memory, own[0]),
            None if self.padding_mask is None else cut(self.padding_mask, own[0]),
            tuple(cut(x, size) for x, size in zip(self.levels, own[1:], strict=True)),
            (self.frames[index],),
            tuple((size,) for size in own),
        )


class Predictions(NamedTuple):
    """What the model says after L decoder layers (the last one last) of B images with Q queries each."""

    logits: Tensor
    """(L, B, Q, classes + 1); the last class is no-object."""
    boxes: Tensor
    """(L, B, Q, 4) centre x, centre y, width, height in [0, 1], relative to the unpadded image."""
    mask_features: MaskFeatures | None = None
    """Of a model with a mask head."""


class Decoded(NamedTuple):
    """What a transformer makes of the queries."""

    hidden: Tensor
    """(L, B, Q, C) output of the decoder layers, the last one last."""
    reference: Tensor | None = None
    """(B, Q, 2) x and y, before the sigmoid, that the centre of a query's box is predicted relative to."""
    memory: Tensor | None = None
    """(B, C, H, W) output of the encoder."""


@dataclass(frozen=True)
class Targets:
    """The objects of B images, padded to T, the largest number in any of them."""

    labels: Tensor
    """(B, T) int64 classes; 0 where padded."""
    boxes: Tensor
    """(B, T, 4) float32 centre x, centre y, width, height relative to the image; the whole image where padded."""
    counts: tuple[int, ...]
    """How many objects each image has. On the host, so that nobody has to ask the device."""
    masks: tuple[Tensor, ...] | None = None
    """For each image (count, height, width) bool, in the pixels of the augmented, unpadded image; None where masks
    are not learned."""

    @classmethod
    def from_instances(
        cls, instances: list[Instances], device: torch.device | str, *, masks: bool = False
    ) -> "Targets":
        """Pad and normalise what the mapper made.

        Args:
            instances: ``gt_classes`` and ``gt_boxes`` (absolute, XYXY) of each image; with ``masks`` also
                ``gt_masks``, ``BitMasks`` or a (count, height, width) bool tensor.
        """
        counts = tuple(len(x) for x in instances)
        sizes = torch.tensor([[w, h, w, h] for h, w in (x.image_size for x in instances)], dtype=torch.float32)
        labels = pad_sequence([x.gt_classes for x in instances], batch_first=True)
        boxes = pad_sequence([x.gt_boxes.tensor.float() for x in instances], batch_first=True)
        boxes = xyxy_to_cxcywh(boxes / sizes.to(boxes.device)[:, None])
        positions = torch.arange(labels.shape[1], device=boxes.device)
        padded = positions >= torch.tensor(counts, device=boxes.device)[:, None]
        boxes = torch.where(padded[..., None], boxes.new_tensor(_PADDING_BOX), boxes)
        bitmaps = None
        if masks:
            tensors = [getattr(x.gt_masks, "tensor", x.gt_masks) for x in instances]
            bitmaps = tuple(x.to(device, torch.bool, non_blocking=True) for x in tensors)
        return cls(labels.to(device, non_blocking=True), boxes.to(device, non_blocking=True), counts, bitmaps)

    def __len__(self) -> int:
        return len(self.counts)
