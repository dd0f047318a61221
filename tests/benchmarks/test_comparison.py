"""Comparisons of implementations that only count, differences by hand, and other checkouts."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import comparison
from benchmarks.comparison import Case, Implementation, check_agreement, compare, differences, machine, table
from benchmarks.measuring import Runner
from detr_d2 import UserError

RUNS: list[tuple[str, bool]] = []


@dataclass(frozen=True, kw_only=True)
class Counting(Case):
    """Work that is only counted. If ``random`` the implementations disagree."""

    names: tuple[str, ...] = ("theirs", "ours")
    batch: int = 3
    random: bool = True
    error: float = 0.0
    title: str = "counting"

    def deterministic(self) -> "Counting":
        return replace(self, random=False)

    def build(self, name: str) -> Implementation:
        wrong = self.random or (name == "ours" and self.error)
        value = torch.tensor([1.0 + self.error if wrong else 1.0])
        runner = Runner(lambda: RUNS.append((name, self.random)))
        return Implementation(runner, lambda: {"value": value}, 0.01, keeps_freed_memory=name == "ours")


@pytest.fixture(autouse=True)
def kept(in_this_process, monkeypatch) -> list[int]:
    """Return the number of processes that were open whenever one was set to keep freed memory."""
    RUNS.clear()
    kept = []
    monkeypatch.setattr(comparison, "keep_freed_memory", lambda: kept.append(in_this_process.opened))
    yield kept
    assert not in_this_process.opened


def test_statistics(monkeypatch):
    monkeypatch.setattr(comparison, "added_memory", lambda run: 10.0 if run() is None and len(RUNS) % 2 else 5.0)
    result = compare(Counting(), rounds=4, warmup=2, memory=True)
    assert [x["name"] for x in result["implementations"]] == ["theirs", "ours"]
    assert result["benchmark"] == "counting"
    for statistics in result["implementations"]:
        assert len(statistics["seconds"]) == len(statistics["cpu_seconds"]) == 4
        assert statistics["images_per_second"] == pytest.approx(3 / statistics["median"])
        assert statistics["difference"] == 0
    assert result["implementations"][0]["speedup"]["median"] == 1
    assert [x["memory_mib"] for x in result["implementations"]] == [10.0, 5.0]
    assert json.loads(json.dumps(result)) == {**result, "case": {**result["case"], "names": ["theirs", "ours"]}}


def test_the_case_itself_is_timed():
    """Outputs are compared without random numbers, which are timed."""
    compare(Counting(), rounds=1, warmup=0)
    assert RUNS == [("theirs", True), ("ours", True)]


def test_only_ours_keeps_memory_in_every_process(monkeypatch, kept):
    """That is for the comparison, for the timing, which has another model, and for the memory."""
    monkeypatch.setattr(comparison, "added_memory", lambda run: 1.0)
    compare(Counting(), rounds=1, memory=True)
    assert kept == [2, 2, 1]
    kept.clear()
    compare(Counting(random=False), rounds=1)
    assert kept == [2]


def test_nothing_is_timed_when_results_differ():
    with pytest.raises(UserError, match=r"ours and theirs disagree.*value differ by 0.1, more than 0.01"):
        compare(Counting(error=0.1), rounds=1)
    assert RUNS == []


def test_table():
    speedups = {"median": 4.0, "lowest": 3.0, "highest": 5.0, "of_fastest": 4.25, "cpu": 3.5}
    statistics = {"name": "ours", "seconds": [0.25, 0.002, 0.3], "median": 0.25, "speedup": speedups}
    statistics |= {"images_per_second": 8.0, "difference": 2e-6, "memory_mib": 50.0}
    result = {"title": "a step", "implementations": [{**statistics, "name": "theirs", "memory_mib": 200.0}, statistics]}
    title, headers, _, _, row = table(result).splitlines()
    expected = "ours 250.0 2.00 300.0 4.00 3.00 - 5.00 4.25 3.50 8 2.0e-06 50 25%"
    assert title == "a step"
    assert headers.split("  ")[-1].strip() == "share"
    assert " ".join(row.split()) == expected
    for x in result["implementations"]:
        x["memory_mib"] = None
    assert "share" not in table(result)


def test_machine():
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    json.dumps(found)


EXPECTED = {
    "scores": torch.tensor([0.5, 0.25, 0.125]),
    "classes": torch.tensor([1, 2, 3, 4]),
    "masks": torch.tensor([True, False]),
}


def changed(**outputs: list) -> dict:
    return {**EXPECTED, **{name: torch.tensor(x) for name, x in outputs.items()}}


def test_differences():
    found = differences(changed(scores=[0.5, 0.5, 0.0], classes=[1, 2, 3, 9]), EXPECTED)
    assert found == {"scores": 0.25, "classes": 0.25, "masks": 0.0}


def test_differences_of_lower_precision():
    found = differences({"x": torch.tensor([1.0], dtype=torch.bfloat16)}, {"x": torch.tensor([1.001])})
    assert found["x"] == pytest.approx(1e-3, rel=1e-3)


def test_empty_outputs_do_not_differ():
    assert differences({"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(0, 4)}) == {"boxes": 0.0}


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
def test_disagreement_is_an_error(outputs, message):
    with pytest.raises(UserError, match=f"ours and theirs .*timing them says nothing: .*{message}"):
        check_agreement("ours", outputs, "theirs", EXPECTED, 0.01)
