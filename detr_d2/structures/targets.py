"""The objects of a batch, and the check that losses can be computed from them."""

import logging
from dataclasses import dataclass

import torch
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.logger import log_first_n
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from detr_d2.utils.box_ops import xyxy_to_cxcywh
from detr_d2.utils.errors import UserError

# A padding box must have an area: overlaps with it are computed, then dropped, and must stay finite.
_PADDING_BOX = (0.5, 0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Targets:
    """The objects of B images, padded to T, the largest number in any of them."""

    labels: Tensor
    """(B, T) int64 classes; 0 where padded."""
    boxes: Tensor
    """(B, T, 4) float32 center x, center y, width, height relative to the image; the whole image where padded."""
    counts: tuple[int, ...]
    """Number of objects in each image. On the host, so that no step waits for the device."""
    masks: tuple[Tensor, ...] | None = None
    """For each image (count, height, width) bool, in the pixels of the augmented, unpadded image; None where masks
    are not trained."""

    @classmethod
    def from_instances(
        cls, instances: list[Instances], device: torch.device | str, *, masks: bool = False
    ) -> "Targets":
        """Pad and normalize the output of the mapper.

        Args:
            instances: ``gt_classes`` and ``gt_boxes`` (absolute, XYXY) of each image; with ``masks`` also
                ``gt_masks``, ``BitMasks`` or a (count, height, width) bool tensor.
            device: of the result.
            masks: whether to include masks.
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

    def padded_to(self, size: int) -> "Targets":
        """Return the same objects with T = ``size``, which is not less than before."""
        missing = size - self.labels.shape[1]
        if not missing:
            return self
        boxes = self.boxes.new_tensor(_PADDING_BOX).expand(len(self), missing, 4)
        return Targets(F.pad(self.labels, (0, missing)), torch.cat((self.boxes, boxes), 1), self.counts, self.masks)

    def repeated(self, times: int) -> "Targets":
        """Return ``times`` copies of the batch, one after the other; masks stay those of the first."""
        return Targets(self.labels.repeat(times, 1), self.boxes.repeat(times, 1, 1), self.counts * times, self.masks)


def check_instances(instances: Instances, name: str, *, num_classes: int, num_queries: int, masks: bool) -> None:
    """Refuse objects that no loss can be computed from. Tensors on a GPU are not read: that would stop it.

    Args:
        instances: ``gt_classes``, ``gt_boxes`` and, with ``masks``, ``gt_masks`` of one image.
        name: of the image, for messages.
        num_classes: foreground classes of the model.
        num_queries: object queries of the model.
        masks: whether masks are trained.

    Raises:
        UserError: names the image and what is wrong.
    """
    if masks:
        _check_masks(instances, name)
    boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
    if len(classes) > num_queries:
        log_first_n(
            logging.WARNING,
            f"{name} has {len(classes)} objects, more than MODEL.DETR.NUM_OBJECT_QUERIES {num_queries}: only as many "
            "as there are queries are trained on.",
            key="caller",
        )
    if not len(classes) or boxes.device.type != "cpu" or classes.device.type != "cpu":
        return
    if classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(
            f"{name} has an object of class {classes.max() if classes.min() >= 0 else classes.min()}, but "
            f"MODEL.DETR.NUM_CLASSES {num_classes} allows 0 to {num_classes - 1}."
        )
    if not (torch.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
        raise UserError(f"{name} has a ground-truth box that is not finite or ends before it starts: {boxes}")


def _check_masks(instances: Instances, name: str) -> None:
    if not instances.has("gt_masks"):
        raise UserError(
            f"MODEL.MASK_ON True: training needs 'gt_masks' in every input's instances; those of {name} have none. "
            "Use DetrDatasetMapper, or set MODEL.MASK_ON False to train on boxes alone."
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        raise UserError(
            f"The masks of {name} are polygons, but training takes bitmaps, which the loader's workers rasterize: use "
            "DetrDatasetMapper, or set INPUT.MASK_FORMAT bitmask where Detectron2's DatasetMapper is used."
        )
    shape = tuple(getattr(masks, "tensor", masks).shape)
    expected = (len(instances), *instances.image_size)
    if shape != expected:
        raise UserError(
            f"The masks of {name} have the shape {shape}; its objects and its size in pixels (height, width) require "
            f"{expected}."
        )
