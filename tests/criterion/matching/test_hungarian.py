import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detr_d2.criterion.matching import HungarianMatcher


def brute_force(cost: torch.Tensor) -> float:
    """Return the minimum total cost of matching each column with a row of its own."""
    rows, columns = cost.shape
    return min(
        sum(cost[row, column].item() for column, row in enumerate(choice))
        for choice in itertools.permutations(range(rows), columns)
    )


def test_is_optimal_in_every_layer_and_image():
    cost = torch.rand(2, 3, 5, 4)
    counts = (4, 0, 2)
    matches = HungarianMatcher()(cost, counts)
    for layer, (image, count) in itertools.product(range(2), enumerate(counts)):
        rows = matches[layer, image]
        total = sum(cost[layer, image, row, column].item() for column, row in enumerate(rows[:count]))
        assert total == pytest.approx(brute_force(cost[layer, image, :, :count]), abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_entry_that_is_not_finite(bad):
    """It is avoided, and the rest is matched optimally."""
    cost = torch.rand(1, 1, 6, 6) * 1000
    cost[0, 0, 2, 3] = bad
    matches = HungarianMatcher()(cost, (6,))[0, 0].tolist()
    assert sorted(matches) == list(range(6))
    assert matches[3] != 2
    forbidden = cost[0, 0].nan_to_num(1e9, 1e9, 1e9).numpy()
    rows, columns = linear_sum_assignment(forbidden)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted((q, t) for t, q in enumerate(matches))
