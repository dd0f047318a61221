"""Conversion of class and mask logits to one segment per pixel (arXiv 2005.12872, section 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from detr_d2.criterion import get_class_loss
from detr_d2.structures import Size

Segmentation = tuple[Tensor, list[dict]]
"""A map of segment ids and a description of each segment: Detectron2's ``panoptic_seg``."""


class SelectedQueries(NamedTuple):
    """The M object queries of one image that may become segments."""

    queries: Tensor  # (M,) int64, ascending.
    scores: list[float]
    classes: list[int]


@dataclass(frozen=True)
class PanopticRules:
    """The rules by which queries become segments."""

    is_thing: Sequence[bool]  # True for things, of the K foreground classes in the order of the class head's rows.
    score_threshold: float = 0.85  # Probability that the class of a query must exceed.
    min_area: int = 4  # Pixels of the result that a segment must exceed; those of smaller ones go to others.
    # False: as the original, which merges stuff of one class only until the first segment is removed. Then all but the
    # first query of a class of stuff are removed too, and their pixels go to segments of other classes.
    merge_after_removal: bool = True
    class_loss: str = "softmax"  # Name in :data:`~detr_d2.criterion.CLASS_LOSSES`, which decides the class of a query.

    @classmethod
    def from_config(cls, cfg: CfgNode, is_thing: Sequence[bool]) -> "PanopticRules":
        """Read the rules from ``MODEL.DETR.PANOPTIC``."""
        panoptic = cfg.MODEL.DETR.PANOPTIC
        return cls(
            is_thing=tuple(is_thing),
            score_threshold=panoptic.SCORE_THRESHOLD,
            min_area=panoptic.MIN_AREA,
            merge_after_removal=panoptic.MERGE_AFTER_REMOVAL,
            class_loss=cfg.MODEL.DETR.CLASS_LOSS,
        )

    def select(self, class_logits: Tensor) -> SelectedQueries:
        """Select the confident queries of an image from (Q, K + 1) logits, the last of which are no-object."""
        scores, classes = get_class_loss(self.class_loss).best(class_logits.float())
        queries = (scores > self.score_threshold).nonzero().squeeze(1)
        return SelectedQueries(queries, scores[queries].tolist(), classes[queries].tolist())


def panoptic_segmentation(
    selected: SelectedQueries,
    mask_logits: Tensor,
    *,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    rules: PanopticRules,
) -> Segmentation:
    """Return the panoptic result of one image. Every pixel goes to the query with the highest mask logit there.

    Sizes are (height, width) in pixels.

    Args:
        selected: M queries, from :meth:`PanopticRules.select`.
        mask_logits: (M, h, w) logits of these queries, over the padded image.
        padded_size, output_size: sizes of the images in the batch, and of the result.
        image_size: size of this image, without padding, which is cut off before the winners are resized.
        rules: rules for things, stuff and small segments.

    Returns:
        - (H, W) int32 segment ids on the logits' device; 0, void, only if there is no segment at all.
        - One dict per segment: "id", counted from 1; "isthing"; "category_id", the class's row in the class head;
          "area" in pixels; "score", the highest probability among its queries.
    """
    void = torch.zeros(output_size, dtype=torch.int32, device=mask_logits.device)
    if not selected.classes:
        return void, []
    masks = _resize(mask_logits.float(), padded_size, image_size)
    owners = _owners(selected.classes, rules.is_thing)
    segments, areas = _assign_pixels(masks, owners, output_size, rules)
    score = {}
    for owner, value in zip(owners, selected.scores, strict=True):
        score[owner] = max(value, score.get(owner, 0.0))
    kept = [k for k, area in enumerate(areas) if area > rules.min_area]
    infos = [
        {
            "id": i,
            "isthing": bool(rules.is_thing[selected.classes[k]]),
            "category_id": selected.classes[k],
            "area": areas[k],
            "score": score[k],
        }
        for i, k in enumerate(kept, start=1)
    ]
    ids = void.new_zeros(len(areas))
    ids[kept] = torch.arange(1, len(kept) + 1, dtype=ids.dtype, device=ids.device)
    return ids[segments], infos


def _assign_pixels(
    masks: Tensor, owners: list[int], output_size: tuple[int, int], rules: PanopticRules
) -> tuple[Tensor, list[int]]:
    """Assign pixels to queries, and those of small segments to others, until no segment is small.

    Args:
        masks: (M, h, w) logits at the image's size.
        owners: index of the query that owns the pixels of each query.

    Returns:
        (H, W) int64 owner of each pixel of the result, and the number of pixels of each of the M queries.
    """
    height, width = masks.shape[1:]
    rows = _nearest(height, output_size[0]).to(masks.device)
    columns = _nearest(width, output_size[1]).to(masks.device)
    masks = masks.flatten(1)
    # Equal to the argmax of the original's softmax, which keeps the order.
    winners = masks.max(dim=0).indices
    owner = torch.tensor(owners, device=masks.device)
    alive = torch.ones(len(owners), dtype=torch.bool, device=masks.device)
    while True:
        segments = owner[winners].view(height, width)[rows][:, columns]
        areas = torch.bincount(segments.flatten(), minlength=len(owners))
        counted = areas[owner] if rules.merge_after_removal else areas
        removed = alive & (counted <= rules.min_area)
        alive &= ~removed
        removed, survivors = removed.sum().item(), alive.sum().item()
        if not removed or not survivors:
            return segments, (areas * alive).tolist()
        if not rules.merge_after_removal:
            owner = torch.arange(len(owners), device=masks.device)
        # Only the pixels of removed queries change their owner.
        lost = (~alive)[winners].nonzero().squeeze(1)
        winners[lost] = masks[:, lost].masked_fill(~alive[:, None], -torch.inf).max(dim=0).indices


def _owners(classes: list[int], is_thing: Sequence[bool]) -> list[int]:
    """Return for each query the first one of its class if that is stuff, and itself if it is a thing."""
    first: dict[int, int] = {}
    return [k if is_thing[c] else first.setdefault(c, k) for k, c in enumerate(classes)]


def _resize(masks: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Resize (M, h, w) logits over the padded image to (M, height, width) of the image."""
    masks = F.interpolate(masks[None], size=padded_size, mode="bilinear", align_corners=False)[0]
    return masks[:, : image_size[0], : image_size[1]]


def _nearest(size: int, output_size: int) -> Tensor:
    """Return (output_size,) indices of the nearest of ``size`` rows; the original breaks ties as PIL does."""
    ramp = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return torch.from_numpy(np.array(ramp.resize((output_size, 1), Image.Resampling.NEAREST))[0]).long()
