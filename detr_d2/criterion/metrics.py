"""What is worth watching in training but is no loss."""

import torch
from torch import Tensor

from detr_d2.structures import Targets


@torch.no_grad()
def class_error(logits: Tensor, targets: Targets, matches: Tensor) -> Tensor | None:
    """Share of the matched queries whose best class, no-object included, is not the object's, in percent.

    Args:
        logits: (B, Q, K) of one layer. matches: (B, T), the query of each object or -1.

    Returns:
        A scalar; None when the batch has no object.
    """
    if not any(targets.counts):
        return None
    best = logits.argmax(-1).gather(1, matches.clamp(min=0))
    matched = matches >= 0
    correct = ((best == targets.labels) & matched).sum()
    return 100 - 100.0 * correct / matched.sum()


@torch.no_grad()
def cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    """(L, B, Q, K) logits -> (L,) mean distance of the number of found objects from the true one."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    true = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
    return (found - true).abs().float().mean(1)
