"""The peak of work that takes a known amount."""

import sys
from functools import partial

import pytest
import torch

from detr_d2.benchmark.memory import added_memory, in_own_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_peak_of_what_is_freed_again():
    def work():
        torch.ones(32 << 18)
        torch.ones(16 << 18)

    assert added_memory(work) == pytest.approx(32, abs=4)


def test_an_earlier_peak_is_forgotten():
    torch.ones(256 << 18)
    assert added_memory(partial(torch.ones, 16 << 18)) == pytest.approx(16, abs=4)


def test_own_process_has_as_many_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert in_own_process(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(threads)
