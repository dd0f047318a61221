import pytest

from detr_d2.utils.errors import ExampleCounter, abbreviate, did_you_mean


@pytest.mark.parametrize(
    ("names", "limit", "expected"),
    [([], 2, ""), (["a", "b"], 2, "a, b"), ([3, 1, 2, 7], 2, "3, 1, … 2 more"), ("abcd", 3, "a, b, c, … 1 more")],
)
def test_abbreviate(names, limit, expected):
    assert abbreviate(names, limit) == expected


def test_did_you_mean():
    assert did_you_mean("trian", ["train", "plot"]) == "Did you mean train?"
    assert did_you_mean("cat1", ["cat2", "cat3", "dog"]) == "Did you mean cat3 or cat2?"
    assert did_you_mean("cat1", ["cat2", "cat3", "dog"], limit=1) == "Did you mean cat3?"
    assert did_you_mean("xyz", ["train"], "Choose one.") == "Choose one."


def test_first_examples_and_counts():
    counter = ExampleCounter()
    assert counter.add("dropped", "image 1")
    assert counter.add("repeated", "image 1")
    assert not counter.add("dropped", "image 2", count=3)
    assert list(counter) == [("dropped", 4, "image 1"), ("repeated", 1, "image 1")]
    assert counter.counts["unknown"] == 0
