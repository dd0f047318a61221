import pytest
import torch

from detr_d2.criterion.matching.rounding import improve_by_swaps, round_to_matching


def select_all(problems, rows, columns):
    return torch.ones(problems, rows, dtype=torch.bool), torch.ones(problems, columns, dtype=torch.bool)


def test_best_pairs_first():
    score = torch.tensor([[[9.0, 8.0, 1.0], [10.0, 2.0, 0.0], [7.0, 6.0, 5.0]]])
    assert round_to_matching(score, *select_all(1, 3, 3)).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_any_score_gives_a_matching(value, noise):
    """Fifty equal rows are more than there are rounds."""
    score = torch.full((2, 50, 60), value)
    score[1, ::3, ::2] = 1.0
    rows, columns = select_all(2, 50, 60)
    rows[1, 40:] = False
    columns[:, :10] = False
    matched = round_to_matching(score, rows, columns, noise=noise)
    for problem, count in ((0, 50), (1, 40)):
        chosen = matched[problem, :count].tolist()
        assert len(set(chosen)) == count
        assert set(chosen) <= set(range(10, 60))
    assert (matched[1, 40:] == 60).all()


def improved(cost, matched, rows=None, columns=None, sweeps=5):
    cost = torch.tensor([cost], dtype=torch.float32)
    all_rows, all_columns = select_all(*cost.shape)
    rows = all_rows if rows is None else torch.tensor([rows])
    columns = all_columns if columns is None else torch.tensor([columns])
    return improve_by_swaps(cost, torch.tensor([matched]), rows, columns, sweeps).tolist()[0]


def test_two_rows_swap():
    assert improved([[5, 0], [0, 5]], [0, 1]) == [1, 0]


def test_a_row_moves_to_a_free_column():
    assert improved([[5, 1, 0]], [0]) == [2]
    assert improved([[5, 1, 0]], [0], columns=[True, True, False]) == [1]


def test_a_row_pushes_another_to_a_free_column():
    """The first takes the second's column; for the second the third column is cheaper than the first."""
    assert improved([[5, 0, 9], [9, 1, 2]], [0, 1], sweeps=1) == [1, 2]


def test_padding_rows_stay_out():
    assert improved([[5, 0, 0], [9, 9, 9]], [0, 3], rows=[True, False]) == [1, 3]


def test_moves_that_touch_the_same_column_are_not_made_at_once():
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(50, 12, 15, generator=generator)
    rows, columns = select_all(50, 12, 15)
    matched = torch.arange(12).expand(50, 12)
    before = cost.gather(2, matched[:, :, None]).sum((1, 2))
    for _ in range(8):
        matched = improve_by_swaps(cost, matched, rows, columns, sweeps=1)
        assert all(len(set(x)) == 12 for x in matched.tolist())
        after = cost.gather(2, matched[:, :, None]).sum((1, 2))
        assert (after <= before + 1e-6).all()
        before = after


def test_no_sweeps_no_change():
    assert improved([[5, 0], [0, 5]], [0, 1], sweeps=0) == [0, 1]
