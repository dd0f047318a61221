"""Costs of any magnitude, on one scale."""

import torch
from torch import Tensor


def normalize(cost: Tensor, rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """Bring costs to one scale without changing which matching is cheapest.

    Among n objects each can have one of its n cheapest queries. So what these differ by is the scale, and what is much
    dearer may be as dear as it likes. What is not finite gets dearer than any matching of finite entries.

    Args:
        cost: (N, T, Q) of any magnitude.
        rows: (N, T) bool, those that are objects.
        columns: (N, Q + spare) bool, those to choose from; the spare ones cost all objects the same.
        total: (N, 1, 1) int64, the number of objects.

    Returns:
        (N, T, Q + spare) finite, the least of every row 0.
    """
    known = cost.isfinite() & rows[:, :, None]
    cost = cost - cost.where(known, torch.inf).amin((1, 2), keepdim=True)
    cost = torch.nn.functional.pad(cost, (0, columns.shape[1] - cost.shape[2]))
    finite = cost.isfinite() & rows[:, :, None] & columns[:, None, :]
    cost = cost.where(finite, torch.inf)
    ordered = cost.sort(2).values
    least = ordered[:, :, :1]
    rank = total.expand(-1, rows.shape[1], -1).clamp(max=cost.shape[2] - 1)
    highest = cost.where(finite, -torch.inf).amax(2, keepdim=True)
    reach = (torch.minimum(ordered.gather(2, rank), highest) - least).nan_to_num(0.0, 0.0, 0.0)

    typical = reach.where(rows[:, :, None], torch.nan).nanmedian(1, keepdim=True).values
    mean = reach.sum(1, keepdim=True) / total.clamp(min=1)
    scale = torch.where(typical > 0, typical, torch.where(mean > 0, mean, 1.0))
    above = torch.minimum((cost - least) / scale, 2 * reach / scale + 1).where(finite, 0.0)
    prohibitive = (above.amax((1, 2), keepdim=True) + 1) * (total + 1)
    return above.where(finite, prohibitive)
