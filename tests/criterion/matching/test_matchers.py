"""Requirements of every registered matcher; see detr_d2.criterion.matching.matcher.Matcher."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detr_d2.criterion.matching import DETR_MATCHER_REGISTRY, build_matcher


@pytest.fixture(params=sorted(dict(DETR_MATCHER_REGISTRY)))
def matcher(request, make_cfg):
    return build_matcher(make_cfg("MODEL.DETR.MATCHER", request.param))


def random_cost(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def assert_one_to_one(matches, counts, queries):
    for layer in matches.tolist():
        for row, count in zip(layer, counts, strict=True):
            matched = [query for query in row[:count] if query >= 0]
            assert len(matched) == len(set(matched)) == min(count, queries)
            assert all(query < queries for query in matched)
            assert set(row[count:]) <= {-1}


def test_one_query_per_object_at_nearly_the_minimum_cost(matcher):
    counts = (4, 0, 2, 7)
    cost = random_cost(2, 4, 9, 7)
    matches = matcher(cost, counts)
    assert matches.shape == (2, 4, 7)
    assert matches.dtype == torch.int64
    assert_one_to_one(matches, counts, queries=9)
    for layer in range(2):
        for image, count in enumerate(counts):
            problem = cost[layer, image, :, :count].numpy()
            minimum = problem[linear_sum_assignment(problem)].sum()
            assert problem[matches[layer, image, :count], range(count)].sum() <= 1.01 * minimum + 1e-6


def test_padding_columns_make_no_difference(matcher):
    cost = random_cost(1, 1, 5, 3)
    alone = matcher(cost[..., :2], (2,))
    for padding in (float("nan"), -1e9, 1e9):
        cost[..., 2] = padding
        assert matcher(cost, (2,))[0, 0].tolist() == [*alone[0, 0].tolist(), -1]


def test_other_images_of_the_batch_make_no_difference(matcher):
    counts = (3, 6, 1)
    cost = random_cost(2, 3, 8, 6)
    together = matcher(cost, counts)
    for image, count in enumerate(counts):
        alone = matcher(cost[:, image : image + 1, :, :count], (count,))
        assert together[:, image, :count].tolist() == alone[:, 0].tolist()


@pytest.mark.parametrize(("queries", "objects"), [(100, 150), (1, 3), (4, 4), (1, 1)])
def test_no_more_queries_than_objects(matcher, queries, objects):
    """There are as many matches as queries, also with another image with fewer objects."""
    cost = random_cost(1, 2, queries, objects) + 5000
    matches = matcher(cost, (objects, 1))
    assert_one_to_one(matches, (objects, 1), queries)
    problem = cost[0, 0].double().numpy()
    found = matches[0, 0] >= 0
    total = problem[matches[0, 0, found], found.nonzero().squeeze(1)].sum()
    minimum, random = problem[linear_sum_assignment(problem)].sum(), queries * problem.mean()
    assert total - minimum <= 0.001 * (random - minimum)
    assert matches[0, 1, 0] == cost[0, 1, :, 0].argmin()


@pytest.mark.parametrize("value", [0.0, -3.5, 1e20])
def test_equal_costs(matcher, value):
    assert_one_to_one(matcher(torch.full((1, 2, 60, 50), value), (50, 20)), (50, 20), 60)


def test_duplicate_objects_and_duplicate_queries(matcher):
    """Forty equal objects, for each of which the same forty queries are best."""
    cost = torch.ones(1, 1, 100, 40)
    cost[:, :, 30:70] = 0.0
    matches = matcher(cost, (40,))
    assert sorted(matches[0, 0].tolist()) == list(range(30, 70))


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-10, 2.0**10, 2.0**60])
def test_magnitude_of_the_cost_makes_no_difference(matcher, factor):
    cost = random_cost(1, 3, 20, 12) - 0.5
    assert matcher(cost * factor, (12, 5, 9)).tolist() == matcher(cost, (12, 5, 9)).tolist()


def test_one_object_of_another_magnitude(matcher):
    """The others are matched as well as without it."""
    cost = random_cost(1, 1, 100, 60, seed=3)
    cost[..., 0] *= 1e9
    matches = matcher(cost, (60,))[0, 0]
    problem = cost[0, 0].double().numpy()
    queries, objects = linear_sum_assignment(problem)
    minimum = problem[queries, objects][objects > 0].sum()
    assert problem[matches[1:], range(1, 60)].sum() <= 1.01 * minimum


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite(matcher, bad):
    """They are avoided, and the rest is matched well."""
    cost = random_cost(1, 3, 6, 6) * 1000
    cost[0, 0, 2, 3] = bad  # one entry
    cost[0, 1, 4, :] = bad  # one query
    cost[0, 2, 1:, 2] = bad  # all but one query, for one object
    counts = (6, 5, 6)
    matches = matcher(cost, counts)
    assert_one_to_one(matches, counts, 6)
    for image, count in enumerate(counts):
        problem = cost[0, image, :, :count].nan_to_num(1e9, 1e9, 1e9).double().numpy()
        total = problem[matches[0, image, :count], range(count)].sum()
        assert total <= 1.01 * problem[linear_sum_assignment(problem)].sum()


def test_nothing_finite(matcher):
    """The error names the object, the image and the layer."""
    cost = random_cost(3, 2, 4, 2)
    cost[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"object 0 of image 1 .* decoder layer 1 .*2 of 12"):
        matcher(cost, (2, 2))


def test_not_finite_where_nothing_is_matched(matcher):
    cost = random_cost(1, 2, 4, 2)
    cost[0, 1] = float("nan")
    assert matcher(cost, (2, 0))[0, 1].tolist() == [-1, -1]


def test_no_objects_at_all(matcher):
    matches = matcher(torch.zeros(2, 3, 5, 0), (0, 0, 0))
    assert matches.shape == (2, 3, 0)
    assert matches.dtype == torch.int64
    assert matcher(torch.zeros(2, 1, 5, 2), (0,)).tolist() == [[[-1, -1]]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_float32(matcher, dtype):
    cost = random_cost(3, 2, 100, 60).to(dtype)
    expected = matcher(cost.float(), (60, 50))
    assert matcher(cost, (60, 50)).tolist() == expected.tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matcher(cost.float(), (60, 50)).tolist() == expected.tolist()


def test_no_gradient_and_an_unchanged_cost(matcher):
    cost = random_cost(1, 2, 8, 5).requires_grad_()
    before = cost.detach().clone()
    matches = matcher(cost * 1.0, (5, 3))
    assert not matches.requires_grad
    assert torch.equal(cost, before)


def test_is_repeatable(matcher):
    cost = random_cost(2, 2, 40, 30).round(decimals=1)
    assert matcher(cost, (30, 30)).tolist() == matcher(cost, (30, 30)).tolist()
