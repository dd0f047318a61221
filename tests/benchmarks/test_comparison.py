"""Of contestants that only count."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import contestants
from benchmarks.comparison import compare, machine, table
from benchmarks.contestants import Contestant
from benchmarks.timing import Runner
from detr_d2.utils.errors import UserError

RUNS: list[tuple[str, bool]] = []


@dataclass(frozen=True)
class Counting:
    """With ``chance`` the contestants disagree."""

    names: tuple[str, ...] = ("theirs", "ours")
    images: int = 3
    chance: bool = True
    error: float = 0.0
    title: str = "counting"

    def without_chance(self) -> "Counting":
        return replace(self, chance=False)

    def build(self, name: str) -> Contestant:
        wrong = self.chance or (name == "ours" and self.error)
        value = torch.tensor([1.0 + self.error if wrong else 1.0])
        runner = Runner(lambda: RUNS.append((name, self.chance)))
        return Contestant(runner, lambda: {"value": value}, 0.01, keeps_freed_memory=name == "ours")


@pytest.fixture(autouse=True)
def kept(in_this_process, monkeypatch) -> list[int]:
    """How many processes were open when one was told to keep its memory."""
    RUNS.clear()
    kept = []
    monkeypatch.setattr(contestants, "keep_freed_memory", lambda: kept.append(in_this_process.opened))
    yield kept
    assert not in_this_process.opened


def test_figures(monkeypatch):
    monkeypatch.setattr(contestants, "added_memory", lambda run: 10.0 if run() is None and len(RUNS) % 2 else 5.0)
    result = compare(Counting(), rounds=4, warmup=2, memory=True)
    assert [x["name"] for x in result["contestants"]] == ["theirs", "ours"]
    assert result["benchmark"] == "counting"
    for figures in result["contestants"]:
        assert len(figures["seconds"]) == len(figures["cpu_seconds"]) == 4
        assert figures["images_per_second"] == pytest.approx(3 / figures["median"])
        assert figures["difference"] == 0
    assert result["contestants"][0]["speedup"]["median"] == 1
    assert [x["memory_mib"] for x in result["contestants"]] == [10.0, 5.0]
    assert json.loads(json.dumps(result)) == {**result, "case": {**result["case"], "names": ["theirs", "ours"]}}


def test_what_is_timed_is_what_was_asked_for():
    """Compared without chance, timed with it."""
    compare(Counting(), rounds=1, warmup=0)
    assert RUNS == [("theirs", True), ("ours", True)]


def test_only_ours_keeps_memory_in_every_process(monkeypatch, kept):
    """Of the comparison, of the timing, which is another model, and of the memory, each alone."""
    monkeypatch.setattr(contestants, "added_memory", lambda run: 1.0)
    compare(Counting(), rounds=1, memory=True)
    assert kept == [2, 2, 1]
    kept.clear()
    compare(Counting(chance=False), rounds=1)
    assert kept == [2]


def test_nothing_is_timed_when_results_differ():
    with pytest.raises(UserError, match=r"ours and theirs disagree.*value differ by 0.1, more than 0.01"):
        compare(Counting(error=0.1), rounds=1)
    assert RUNS == []


def test_table():
    speedups = {"median": 4.0, "lowest": 3.0, "highest": 5.0, "of_fastest": 4.25, "cpu": 3.5}
    figures = {"name": "ours", "seconds": [0.25, 0.002, 0.3], "median": 0.25, "speedup": speedups}
    figures |= {"images_per_second": 8.0, "difference": 2e-6, "memory_mib": 50.0}
    result = {"title": "a step", "contestants": [{**figures, "name": "theirs", "memory_mib": 200.0}, figures]}
    title, headers, _, _, row = table(result).splitlines()
    expected = "ours 250.0 2.00 300.0 4.00 3.00 - 5.00 4.25 3.50 8 2.0e-06 50 25%"
    assert title == "a step"
    assert headers.split("  ")[-1].strip() == "share"
    assert " ".join(row.split()) == expected
    for x in result["contestants"]:
        x["memory_mib"] = None
    assert "share" not in table(result)


def test_machine():
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    json.dumps(found)
