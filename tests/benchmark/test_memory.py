"""The peak of work that takes a known amount."""

import sys
from functools import partial

import pytest
import torch

from detr_d2.benchmark.memory import added_memory, in_own_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def peak_of_what_is_freed_again() -> float:
    def work():
        torch.ones(32 << 18)
        torch.ones(16 << 18)

    return added_memory(work)


def peak_after_a_higher_one() -> float:
    torch.ones(256 << 18)
    return added_memory(partial(torch.ones, 16 << 18))


@pytest.mark.parametrize(("measure", "expected"), [(peak_of_what_is_freed_again, 32), (peak_after_a_higher_one, 16)])
def test_the_peak(measure, expected):
    """In a process that has no freed memory to use again."""
    assert in_own_process(measure) == pytest.approx(expected, abs=4)


def test_own_process_has_as_many_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert in_own_process(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(threads)
