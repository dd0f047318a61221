"""The object queries that enter a decoder together."""

from typing import NamedTuple

from torch import Tensor


class QueryBlock(NamedTuple):
    """Consecutive object queries in groups of one size. A query attends to the queries of its group only."""

    groups: int
    size: int
    """Number of queries in a group."""
    padding_mask: Tensor | None = None
    """(B, size) bool, True for queries that no other attends to; the same in every group. None: there are none."""

    @property
    def num_queries(self) -> int:
        """Number of queries in all groups."""
        return self.groups * self.size


class Queries(NamedTuple):
    """Object queries: those of the model, and in training what helps it to learn."""

    pos: Tensor
    """(Q, C), or (B, Q, C) where they differ between images."""
    blocks: tuple[QueryBlock, ...]
    """In the order of the queries. The first group of the first block is the model's own."""
    content: Tensor | None = None
    """(B, Q, C) initial content. None: zeros."""
    centers: Tensor | None = None
    """(B, N, 2) x and y in [0, 1], relative to the image, around which the last N queries search. None: N is 0."""

    @classmethod
    def of_model(cls, embedding: Tensor) -> "Queries":
        """Return the model's own queries, from their (Q, C) embedding."""
        return cls(embedding, (QueryBlock(1, len(embedding)),))

    def initial_content(self, batch_size: int) -> Tensor:
        """Return (B, Q, C), what the first decoder layer updates."""
        if self.content is not None:
            return self.content
        return self.pos.new_zeros(batch_size, *self.pos.shape[-2:])
