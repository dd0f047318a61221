"""What a comparison consists of: cases, and contestants that run in processes of their own."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from benchmarks.memory import added_memory
from benchmarks.timing import Elapsed, Runner, rest, stopwatch
from detr_d2.engine import keep_freed_memory


class Contestant(NamedTuple):
    runner: Runner
    outputs: Callable[[], dict[str, Tensor]]
    """Does the work, perhaps more than once, and returns what is compared with the baseline's."""
    tolerance: float
    keeps_freed_memory: bool
    """Whether its process does, see :func:`detr_d2.keep_freed_memory`: ours does, as our programs do."""


class Case(Protocol):
    """What is compared: a frozen dataclass that other processes can read."""

    names: tuple[str, ...]
    """The contestants; the first is the baseline."""
    images: int
    """That a run works on."""

    @property
    def title(self) -> str: ...

    def build(self, name: str) -> Contestant: ...

    def without_chance(self) -> "Case":
        """The case to check the outputs of: this one, or one that differs by what it draws at random."""


class Entrant:
    """A contestant as its process holds it, which builds it when it is first asked."""

    def __init__(self, case: Case, name: str):
        self.case = case
        self.name = name
        self._built: Contestant | None = None

    def outputs(self) -> tuple[dict[str, Tensor], float]:
        """What is compared, on the CPU, and the tolerance."""
        exact = self.case.without_chance()
        contestant = self._contestant() if exact == self.case else _build(exact, self.name)
        return {name: x.detach().cpu() for name, x in contestant.outputs().items()}, contestant.tolerance

    def run(self) -> Elapsed:
        """Do the work once, and take the time; then rest."""
        elapsed = stopwatch(self._contestant().runner)
        rest()
        return elapsed

    def memory(self) -> float:
        """MiB that the work adds, see :func:`added_memory`."""
        return added_memory(self._contestant().runner.run)

    def _contestant(self) -> Contestant:
        if self._built is None:
            self._built = _build(self.case, self.name)
        return self._built


def _build(case: Case, name: str) -> Contestant:
    contestant = case.build(name)
    if contestant.keeps_freed_memory:
        keep_freed_memory()
    return contestant
