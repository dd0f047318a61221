"""Denoising queries: noised objects as further queries in training, which need no matching.

DN-DETR (arXiv 2203.01305, section 4) and contrastive denoising (arXiv 2203.03605, section 3.3).
"""

import math
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from detr_d2.modeling.layers import MLP
from detr_d2.modeling.position_encoding import axis_sine
from detr_d2.structures import QueryBlock, Targets
from detr_d2.utils.box_ops import cxcywh_to_xyxy, xyxy_to_cxcywh

_TEMPERATURE = 20.0


class NoisedQueries(NamedTuple):
    """G groups of N queries made from B images with up to T objects; with negatives N is 2 T, else T."""

    pos: Tensor
    """(B, G N, C)"""
    content: Tensor
    """(B, G N, C)"""
    centers: Tensor
    """(B, G N, 2) of the noised boxes, in [0, 1]."""
    block: QueryBlock
    targets: Targets
    """Of the batch, with T at least 1."""
    padded: Tensor
    """(B, N) bool, True for queries without an object."""

    @property
    def ignored(self) -> Tensor:
        """(G B, N) bool, True for queries without an object, group by group."""
        return self.padded.repeat(self.block.groups, 1)

    def matches(self, layers: int) -> Tensor:
        """Return (L, G B, T) int64, the query that was made from each object, or -1, group by group."""
        num_objects = self.targets.labels.shape[1]
        objects = torch.arange(num_objects, device=self.padded.device)
        matches = torch.where(self.padded[:, :num_objects], -1, objects)
        return matches.repeat(layers, self.block.groups, 1)


class DenoisingQueries(nn.Module):
    """Makes queries from noised objects, which the decoder is trained to bring back to the true class and box.

    The first T queries of a group have boxes with less noise than ``box_noise``; with ``negatives`` T more have boxes
    with up to twice as much, and should be classified as no-object.

    Args:
        num_classes: foreground classes.
        hidden_dim: C, size of a query.
        groups: G, independently noised copies of the objects.
        box_noise: maximum distance that an edge is moved, relative to half of the box's width or height.
        label_noise: probability with which a query is made from a random class.
        negatives: True to add queries that should be classified as no-object.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        hidden_dim: int,
        groups: int = 5,
        box_noise: float = 0.4,
        label_noise: float = 0.2,
        negatives: bool = True,
    ):
        super().__init__()
        self.groups = groups
        self.box_noise = box_noise
        self.label_noise = label_noise
        self.negatives = negatives
        self.label_embed = nn.Embedding(num_classes, hidden_dim)
        self.box_embed = MLP(2 * hidden_dim, hidden_dim, hidden_dim, num_layers=2)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        return {
            "num_classes": detr.NUM_CLASSES,
            "hidden_dim": detr.HIDDEN_DIM,
            "groups": detr.DENOISING.GROUPS,
            "box_noise": detr.DENOISING.BOX_NOISE,
            "label_noise": detr.DENOISING.LABEL_NOISE,
            "negatives": detr.DENOISING.NEGATIVES,
        }

    def forward(self, targets: Targets) -> NoisedQueries:
        """Make queries from the objects of a batch. A batch without any gets one query per group, without an object."""
        targets = targets.padded_to(max(1, targets.labels.shape[1]))
        copies = 2 if self.negatives else 1
        counts = torch.tensor(targets.counts).to(targets.labels.device, non_blocking=True)[:, None]
        padded = (torch.arange(targets.labels.shape[1], device=counts.device) >= counts).repeat(1, copies)
        labels, boxes = self.noise(targets, copies)
        pos = self.box_embed(_box_sine(boxes, self.label_embed.embedding_dim))
        # An image without objects has no query that could be attended to.
        mask = padded & (counts > 0)
        block = QueryBlock(self.groups, copies * targets.labels.shape[1], mask)
        return NoisedQueries(pos, self.label_embed(labels), boxes[..., :2], block, targets, padded)

    def noise(self, targets: Targets, copies: int) -> tuple[Tensor, Tensor]:
        """Return (B, G N) classes and (B, G N, 4) boxes: center, width and height in [0, 1]."""
        labels = targets.labels.repeat(1, self.groups * copies)
        boxes = targets.boxes.repeat(1, self.groups * copies, 1)
        random_labels = torch.randint_like(labels, self.label_embed.num_embeddings)
        labels = labels.where(torch.rand(labels.shape, device=labels.device) >= self.label_noise, random_labels)
        distance = torch.rand_like(boxes).unflatten(1, (self.groups, copies, -1))
        distance = distance + torch.arange(copies, device=boxes.device)[:, None, None]
        sign = torch.randint_like(boxes, 2) * 2 - 1
        half_size = boxes[..., 2:].repeat(1, 1, 2) / 2
        moved = cxcywh_to_xyxy(boxes) + self.box_noise * sign * distance.flatten(1, 3) * half_size
        # Swap edges that have crossed.
        first, second = moved.clamp(0, 1).chunk(2, dim=-1)
        return labels, xyxy_to_cxcywh(torch.cat((first.minimum(second), first.maximum(second)), dim=-1))


def _box_sine(boxes: Tensor, hidden_dim: int) -> Tensor:
    """Return the sines and cosines of (…, 4) boxes: (…, 2 C)."""
    return axis_sine(boxes * (2 * math.pi), hidden_dim // 2, _TEMPERATURE).flatten(-2)
