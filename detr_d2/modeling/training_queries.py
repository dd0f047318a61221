"""Further object queries in training: groups, and denoising queries."""

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from detr_d2.modeling.denoising import DenoisingQueries, NoisedQueries
from detr_d2.structures import Output, Queries, QueryBlock, Targets


class TrainingQueries(nn.Module):
    """Further queries beside the model's own, each group of which is matched or compared by itself.

    Groups (Group DETR, arXiv 2207.13085, section 3.2) are other embeddings of as many queries, so that every object is
    found several times. They share all other weights; in inference the model's own queries are alone.

    Args:
        groups: number of groups, the model's own included.
        num_queries: Q, size of a group.
        hidden_dim: C, size of a query.
        denoising: module that makes queries from noised objects. None: no denoising queries.
    """

    def __init__(self, *, groups: int, num_queries: int, hidden_dim: int, denoising: DenoisingQueries | None = None):
        super().__init__()
        self.groups = groups
        self.group_embed = nn.Embedding((groups - 1) * num_queries, hidden_dim) if groups > 1 else None
        self.denoising = denoising

    def forward(self, embedding: Tensor, targets: Targets) -> tuple[Queries, NoisedQueries | None]:
        """Return all queries of a training step, and those of them that are made from noised objects.

        Args:
            embedding: (Q, C) the model's own queries.
            targets: the objects of the batch.
        """
        block = QueryBlock(self.groups, len(embedding))
        if self.group_embed is not None:
            embedding = torch.cat((embedding, self.group_embed.weight))
        if self.denoising is None:
            return Queries(embedding, (block,)), None
        noised = self.denoising(targets)
        batch_size = len(targets)
        pos = torch.cat((embedding.expand(batch_size, -1, -1), noised.pos), dim=1)
        own_content = noised.content.new_zeros(batch_size, *embedding.shape)
        content = torch.cat((own_content, noised.content), dim=1)
        return Queries(pos, (block, noised.block), content, noised.centers), noised

    def split(self, output: Output, queries: Queries) -> list[Output]:
        """Split the predictions into one output per block, in which every group is an image of its own.

        Returns:
            For each block logits (L, groups B, size, K + 1) and boxes (L, groups B, size, 4): the images with the first
            group, the images with the second, and so on.
        """
        sizes = [block.num_queries for block in queries.blocks]
        parts = zip(queries.blocks, output.logits.split(sizes, dim=2), output.boxes.split(sizes, dim=2), strict=True)
        return [Output(_by_group(logits, x.groups), _by_group(boxes, x.groups)) for x, logits, boxes in parts]


def build_training_queries(cfg: CfgNode) -> TrainingQueries | None:
    """Build the queries of ``MODEL.DETR.QUERY_GROUPS`` and ``MODEL.DETR.DENOISING``; None if there are none."""
    detr = cfg.MODEL.DETR
    denoising = DenoisingQueries(cfg) if detr.DENOISING.GROUPS else None
    if detr.QUERY_GROUPS == 1 and denoising is None:
        return None
    return TrainingQueries(
        groups=detr.QUERY_GROUPS,
        num_queries=detr.NUM_OBJECT_QUERIES,
        hidden_dim=detr.HIDDEN_DIM,
        denoising=denoising,
    )


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Turn (L, B, groups Q, …) into (L, groups B, Q, …)."""
    return x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(1, 2)
