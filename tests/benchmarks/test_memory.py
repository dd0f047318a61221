"""The peak of work that takes a known amount."""

import sys
from functools import partial

import pytest
import torch

from benchmarks.memory import added_memory
from benchmarks.processes import OwnProcess
from detr_d2.engine import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Work:
    """In MiB."""

    def freed_again(self) -> float:
        def work():
            torch.ones(32 << 18)
            torch.ones(16 << 18)

        return added_memory(work)

    def after_a_higher_peak(self) -> float:
        torch.ones(256 << 18)
        return added_memory(partial(torch.ones, 16 << 18))

    def kept(self) -> float:
        keep_freed_memory()
        return self.after_a_higher_peak()


def test_the_peak():
    with OwnProcess(Work(), "work") as process:
        assert process.call("freed_again") == pytest.approx(32, abs=4)
        assert process.call("after_a_higher_peak") == pytest.approx(16, abs=4)
        assert process.call("kept") == pytest.approx(16, abs=4)
