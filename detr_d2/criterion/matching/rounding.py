"""Rounding of scores to one-to-one matchings, for many problems at once and without synchronizing with the device."""

import torch
from torch import Tensor

# After this many rounds of mutual choice almost every row is matched; the others are matched in their order.
_ROUNDS = 16


def round_to_matching(score: Tensor, rows: Tensor, columns: Tensor, noise: float = 0.0) -> Tensor:
    """Match rows and columns that are each other's best, round after round, then the remaining rows in their order.

    Args:
        score: (N, T, Q) scores of N problems; higher ones are matched first.
        rows: (N, T) bool, True for rows to match.
        columns: (N, Q) bool, True for columns to choose from, at least as many as rows.
        noise: maximum perturbation of a score, different in every row, to break ties: otherwise, of rows with equal
            scores for the same columns only one would be matched in each round.

    Returns:
        (N, T) int64 columns, all different within a problem; Q for the other rows. Valid for any score.
    """
    problems, height, width = score.shape
    row, column = (torch.arange(size, device=score.device) for size in (height, width))
    # Fractional parts of multiples of an irrational number: spread evenly, equal in every run.
    score = score + noise * (torch.outer(row + 1.0, column + 1.0) * 0.6180339887).frac()
    score = score.nan_to_num(nan=-1e30, posinf=1e30, neginf=-1e30)
    matched = torch.full((problems, height), width, device=score.device)
    left, free = rows, columns
    for _ in range(_ROUNDS):
        open_score = score.masked_fill(~(left[:, :, None] & free[:, None, :]), -torch.inf)
        best_column = open_score.argmax(2)
        mutual = left & (open_score.argmax(1).gather(1, best_column) == row)
        matched = torch.where(mutual, best_column, matched)
        left = rows & (matched == width)
        free = columns & ~_scatter(matched, True, False, width)
        if score.is_cpu and not left.any():
            return matched
    free_first = free.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    nth = (left.cumsum(1) - 1).clamp(0, width - 1)
    return torch.where(left, free_first.gather(1, nth), matched)


def improve_by_swaps(
    cost: Tensor, matched: Tensor, rows: Tensor, columns: Tensor, sweeps: int, tolerance: float = 1e-6
) -> Tensor:
    """Lower the cost of a matching by moves of up to two rows.

    A row takes a column; the column's previous owner, if any, gets the row's old column or its fallback, the cheapest
    free column. Every sweep makes the best such move of each problem, and all others that share no column with a
    better one.

    Args:
        cost: (N, T, Q) finite costs.
        matched: (N, T) columns, from :func:`round_to_matching`.
        rows: (N, T) bool, True for rows to match.
        columns: (N, Q) bool, True for columns to choose from.
        sweeps: maximum number of sweeps.
        tolerance: minimum gain of a move.

    Returns:
        (N, T) columns, as ``matched``, never at a higher cost.
    """
    problems, height, width = cost.shape
    row = torch.arange(height, device=cost.device).expand(problems, height)
    # The owner of a free column is one more row, with cost 0 everywhere.
    with_free = torch.nn.functional.pad(cost, (0, 0, 0, 1))
    forbidden = ~(rows[:, :, None] & columns[:, None, :])
    for _ in range(sweeps):
        owner = _scatter(matched, row, height, width)
        own = matched.clamp(max=width - 1)
        occupied = ((owner < height) | ~columns)[:, None, :]
        fallback_cost, fallback_column = with_free.masked_fill(occupied, torch.inf).min(2)
        exchange_cost = (
            with_free.gather(2, own[:, None, :].expand(-1, height + 1, -1))
            .gather(1, owner[:, :, None].expand(-1, -1, height))
            .transpose(1, 2)
        )
        owner_before = with_free.gather(1, owner[:, None, :])
        owner_after = torch.minimum(exchange_cost, fallback_cost.gather(1, owner)[:, None, :])
        gain = (cost.gather(2, own[:, :, None]) - cost) + (owner_before - owner_after)
        best, best_column = gain.masked_fill(forbidden, 0.0).max(2)

        previous_owner = owner.gather(1, best_column)
        exchange = exchange_cost.gather(2, best_column[:, :, None]).squeeze(2)
        takes_fallback = (fallback_cost.gather(1, previous_owner) < exchange) & (previous_owner < height)
        new_column = torch.where(takes_fallback, fallback_column.gather(1, previous_owner), own)
        accepted = _compatible(best, (own, best_column, new_column), width, tolerance)
        if cost.is_cpu and not accepted.any():
            break
        moved = torch.cat((torch.where(accepted, best_column, matched), matched[:, :1]), 1)
        matched = moved.scatter(1, torch.where(accepted, previous_owner, height), new_column)[:, :height]
    return matched


def _compatible(gain: Tensor, used: tuple[Tensor, ...], width: int, tolerance: float) -> Tensor:
    """Return (N, T) bool, True for moves that gain more than all others with a column in common; ties: the first."""
    height = gain.shape[1]
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank = torch.where(gain > tolerance, rank, height)
    first = torch.full((len(gain), width), height, device=gain.device)
    for column in used:
        first = first.scatter_reduce(1, column, rank, "amin")
    is_first = [first.gather(1, column) == rank for column in used]
    return torch.stack((rank < height, *is_first)).all(0)


def _scatter(matched: Tensor, value: Tensor | bool, default: int | bool, width: int) -> Tensor:
    """Return (N, Q): ``value`` at the matched columns, ``default`` elsewhere."""
    # Unmatched rows point one past the last column.
    table = torch.full((len(matched), width + 1), default, device=matched.device)
    return table.scatter(1, matched, value)[:, :width]
