from detr_d2.utils.errors import ExampleCounter


def test_first_examples_and_counts():
    counter = ExampleCounter()
    assert counter.add("dropped", "image 1")
    assert counter.add("repeated", "image 1")
    assert not counter.add("dropped", "image 2", count=3)
    assert list(counter) == [("dropped", 4, "image 1"), ("repeated", 1, "image 1")]
    assert counter.counts["unknown"] == 0
