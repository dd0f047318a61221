import itertools
import logging

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detr_d2.matching import HungarianMatcher


def brute_force(cost: torch.Tensor) -> float:
    """The least total cost of giving each column a row of its own."""
    rows, columns = cost.shape
    return min(
        sum(cost[row, column].item() for column, row in enumerate(choice))
        for choice in itertools.permutations(range(rows), columns)
    )


def test_is_optimal_in_every_layer_and_image():
    cost = torch.rand(2, 3, 5, 4)
    counts = (4, 0, 2)
    matches = HungarianMatcher()(cost, counts)
    assert matches.shape == (2, 3, 4)
    assert matches.dtype == torch.int64
    for layer, (image, count) in itertools.product(range(2), enumerate(counts)):
        rows = matches[layer, image]
        assert (rows[count:] == -1).all()
        assert len(set(rows[:count].tolist())) == count
        total = sum(cost[layer, image, row, column].item() for column, row in enumerate(rows[:count]))
        assert total == pytest.approx(brute_force(cost[layer, image, :, :count]), abs=1e-6)


def test_padding_columns_have_no_say():
    cost = torch.rand(1, 1, 5, 3)
    alone = HungarianMatcher()(cost[..., :2], (2,))
    cost[..., 2] = float("nan")
    assert HungarianMatcher()(cost, (2,))[..., :2].tolist() == alone.tolist()


def test_more_objects_than_queries():
    """Edge case C25: 150 objects, 100 queries."""
    matches = HungarianMatcher()(torch.rand(1, 1, 100, 150), (150,))
    matched = matches[matches >= 0]
    assert sorted(matched.tolist()) == list(range(100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_entry_that_is_not_finite(bad):
    """Edge case C26: it is avoided, and the rest is matched as well as can be."""
    cost = torch.rand(1, 1, 6, 6) * 1000
    cost[0, 0, 2, 3] = bad
    matches = HungarianMatcher()(cost, (6,))[0, 0].tolist()
    assert sorted(matches) == list(range(6))
    assert matches[3] != 2
    forbidden = cost[0, 0].nan_to_num(1e9, 1e9, 1e9).numpy()
    rows, columns = linear_sum_assignment(forbidden)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted((q, t) for t, q in enumerate(matches))


def test_nothing_finite():
    """Edge case C27: never masked into a match; the message says where."""
    cost = torch.rand(3, 2, 4, 2)
    cost[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"object 0 of image 1 .* decoder layer 1 .*2 of 12"):
        HungarianMatcher()(cost, (2, 2))


def test_not_finite_where_nothing_is_matched(caplog):
    cost = torch.rand(1, 2, 4, 2)
    cost[0, 1] = float("nan")
    with caplog.at_level(logging.WARNING):
        assert HungarianMatcher()(cost, (2, 0))[0, 1].tolist() == [-1, -1]


def test_no_objects_at_all():
    assert HungarianMatcher()(torch.zeros(2, 3, 5, 0), (0, 0, 0)).shape == (2, 3, 0)
