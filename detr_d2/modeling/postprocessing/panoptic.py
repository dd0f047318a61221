"""From class and mask logits to one segment a pixel (arXiv 2005.12872, section 4.4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from detr_d2.config import choice

Segmentation = tuple[Tensor, list[dict]]
"""A map of segment ids and what each segment is: Detectron2's ``panoptic_seg``."""


@dataclass(frozen=True)
class PanopticRules:
    """Which queries become segments."""

    is_thing: Sequence[bool]
    """Of each of the K foreground classes, in the order of the class head's rows."""
    score_threshold: float = 0.85
    """Queries whose class is less probable are left out."""
    min_area: int = 4
    """Segments of this many pixels of the result or fewer are removed; others take their place."""
    merge_after_removal: bool = True
    """False: as the original, whose stuff of one class is merged only until the first segment is removed. Then all but
    the first query of a class of stuff are removed too, and what they covered goes to segments of other classes."""
    class_loss: str = "softmax"
    """"softmax": a query's class is its most probable one, and nothing if that is no-object. "focal", where classes
    are scored one by one and there is no no-object: the class with the highest score."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_thing: Sequence[bool]) -> "PanopticRules":
        panoptic = cfg.MODEL.DETR.PANOPTIC
        return cls(
            is_thing=tuple(is_thing),
            score_threshold=panoptic.SCORE_THRESHOLD,
            min_area=panoptic.MIN_AREA,
            merge_after_removal=panoptic.MERGE_AFTER_REMOVAL,
            class_loss=cfg.MODEL.DETR.CLASS_LOSS,
        )


def panoptic_segmentation(
    class_logits: Tensor,
    mask_logits: Callable[[Tensor], Tensor],
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    rules: PanopticRules,
) -> Segmentation:
    """The panoptic result of one image. Every pixel goes to the query with the highest mask logit there.

    Sizes are (height, width) in pixels.

    Args:
        class_logits: (Q, K + 1) of the last decoder layer; the last is no-object.
        mask_logits: from (M,) int64 queries to their (M, h, w) mask logits over the padded image. It is asked once, for
            the queries that are confident enough; for logits at hand, ``logits.__getitem__`` will do.
        padded_size: of the images in the batch.
        image_size: of this image in it, without padding, which is cut off before the winners are resized.
        output_size: of the result.
        rules: which queries become segments.

    Returns:
        - (H, W) int32 segment ids on the logits' device; 0, void, only where nothing was found at all.
        - A dict a segment: "id" from 1; "isthing"; "category_id", the class's row in the class head; "area" in pixels;
          "score", the highest probability among its queries.
    """
    scores, classes = choice(_CONFIDENCES, "MODEL.DETR.CLASS_LOSS", rules.class_loss)(class_logits.float())
    queries = (scores > rules.score_threshold).nonzero().squeeze(1)
    kept_scores, kept_classes = scores[queries].tolist(), classes[queries].tolist()
    void = torch.zeros(output_size, dtype=torch.int32, device=class_logits.device)
    if not kept_classes:
        return void, []
    masks = _resize(mask_logits(queries).float(), padded_size, image_size)
    owners = _owners(kept_classes, rules.is_thing)
    segments, areas = _assign_pixels(masks, owners, output_size, rules)
    score = {}
    for owner, value in zip(owners, kept_scores, strict=True):
        score[owner] = max(value, score.get(owner, 0.0))
    found = [k for k, area in enumerate(areas) if area > rules.min_area]
    infos = [
        {
            "id": i,
            "isthing": bool(rules.is_thing[kept_classes[k]]),
            "category_id": kept_classes[k],
            "area": areas[k],
            "score": score[k],
        }
        for i, k in enumerate(found, start=1)
    ]
    ids = void.new_zeros(len(areas))
    ids[found] = torch.arange(1, len(found) + 1, dtype=ids.dtype, device=ids.device)
    return ids[segments], infos


def _assign_pixels(
    masks: Tensor, owners: list[int], output_size: tuple[int, int], rules: PanopticRules
) -> tuple[Tensor, list[int]]:
    """Give pixels to queries, and those of small segments to others until there are none.

    Args:
        masks: (M, h, w) logits at the image's size.
        owners: for each query the one that its pixels are counted for.

    Returns:
        (H, W) int64 the owner of each pixel of the result, and for each of M queries how many pixels it has there.
    """
    height, width = masks.shape[1:]
    rows = _nearest(height, output_size[0]).to(masks.device)
    columns = _nearest(width, output_size[1]).to(masks.device)
    masks = masks.flatten(1)
    # As the argmax of the original's softmax, which keeps the order.
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
        # Only what the removed ones had changes hands.
        lost = (~alive)[winners].nonzero().squeeze(1)
        winners[lost] = masks[:, lost].masked_fill(~alive[:, None], -torch.inf).max(dim=0).indices


def _owners(classes: list[int], is_thing: Sequence[bool]) -> list[int]:
    """For each query the first one of its class if that is stuff, and itself if it is a thing."""
    first: dict[int, int] = {}
    return [k if is_thing[c] else first.setdefault(c, k) for k, c in enumerate(classes)]


def _resize(masks: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """(M, h, w) over the padded image -> (M, height, width) of the image."""
    masks = F.interpolate(masks[None], size=padded_size, mode="bilinear", align_corners=False)[0]
    return masks[:, : image_size[0], : image_size[1]]


def _nearest(size: int, output_size: int) -> Tensor:
    """(output_size,) which of ``size`` rows PIL takes, whose choice between two equally near ones the original has."""
    ramp = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return torch.from_numpy(np.array(ramp.resize((output_size, 1), Image.Resampling.NEAREST))[0]).long()


def _softmax_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, K + 1) -> (Q,) scores and classes; a score of 0 where no-object is the most probable."""
    scores, classes = logits.softmax(-1).max(-1)
    return scores.where(classes < logits.shape[-1] - 1, 0.0), classes


def _sigmoid_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, K + 1) -> (Q,) scores and classes; no-object is not scored."""
    return logits[..., :-1].sigmoid().max(-1)


_CONFIDENCES = {"softmax": _softmax_confidence, "focal": _sigmoid_confidence}
