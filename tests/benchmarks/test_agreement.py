"""Differences by hand, and what is refused."""

import pytest
import torch

from benchmarks.agreement import check_agreement, difference
from detr_d2.utils.errors import UserError

EXPECTED = {
    "scores": torch.tensor([0.5, 0.25, 0.125]),
    "classes": torch.tensor([1, 2, 3, 4]),
    "masks": torch.tensor([True, False]),
}


def changed(**outputs) -> dict:
    return {**EXPECTED, **{name: torch.tensor(x) for name, x in outputs.items()}}


def test_difference():
    found = difference(changed(scores=[0.5, 0.5, 0.0], classes=[1, 2, 3, 9]), EXPECTED)
    assert found == {"scores": 0.25, "classes": 0.25, "masks": 0.0}


def test_lower_precision_is_compared_with_all_its_digits():
    found = difference({"x": torch.tensor([1.0], dtype=torch.bfloat16)}, {"x": torch.tensor([1.001])})
    assert found["x"] == pytest.approx(1e-3, rel=1e-3)


def test_nothing_does_not_differ():
    assert difference({"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(0, 4)}) == {"boxes": 0.0}


def test_agreement():
    assert check_agreement("ours", changed(scores=[0.5, 0.25, 0.0]), "theirs", EXPECTED, 0.125) == 0.125


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (changed(scores=[0.5, 0.25, 0.1]), "scores differ by 0.025, more than 0.01"),
        (changed(classes=[1, 2, 3, 3]), "classes differ by 0.25"),
        (changed(masks=[True, True]), "masks differ by 0.5"),
        (changed(scores=[0.5, float("nan"), 0.125]), "not finite"),
        (changed(scores=[0.5, 0.25]), r"shapes \(2,\) and \(3,\)"),
        ({"scores": EXPECTED["scores"]}, "nothing to compare"),
    ],
)
def test_what_does_not_agree_is_refused(outputs, message):
    with pytest.raises(UserError, match=f"ours and theirs .*timing them says nothing: .*{message}"):
        check_agreement("ours", outputs, "theirs", EXPECTED, 0.01)
