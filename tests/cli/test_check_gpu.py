"""Checks of a device: on the CPU those that it can run; results that are wrong, and checks that crash."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage

from detr_d2.cli import check_gpu
from detr_d2.cli.main import main
from detr_d2.engine import gpu_checks
from detr_d2.engine.gpu_checks import CHECKS, Check, Settings, run_check

# Compiling takes minutes, starting processes and building large models seconds.
SLOW = {"torch.compile, inference", "torch.compile, training", "gradients of two processes with DDP"}
NOT_ON_A_CPU = {
    *("float32 equals the CPU, small model", "float32 equals the CPU, R50", "host waits in a training step"),
    *("float16 against float32, R50", "training in float16"),
}


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings("cpu", quick=True, folder=tmp_path)


@pytest.fixture
def benchmarks(monkeypatch):
    """Replace the benchmarks by one that returns numbers, and return the words it gets."""
    calls = []

    def run(checkout, words, stderr):
        calls.append(words)
        numbers = {"median": 0.02, "speedup": {"median": 2.5}, "difference": 2e-6, "memory_mib": 30.0}
        content = {"comparisons": [{"implementations": [{"name": x, **numbers} for x in ("python-detr", "ours")]}]}
        with open(words[words.index("--json") + 1], "w") as file:
            json.dump(content, file)
        stderr.write("error: they disagree" if "training" in words else "")
        return int("training" in words)

    monkeypatch.setattr(check_gpu, "run_benchmarks", run)
    return calls


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_report_of_a_cpu(benchmarks, catalogs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path / "cache"))
    quick = [x for x in CHECKS if x.name not in SLOW]
    monkeypatch.setattr(gpu_checks, "CHECKS", quick)
    file = tmp_path / "report.md"
    assert main(["check-gpu", "--device", "cpu", "--quick", "--output", str(file)]) == 1
    title, _, command, *rows = [x for x in file.read_text().splitlines() if x and not x.startswith("```")]
    assert title.startswith("### CPU")
    assert command == f"detr-d2 check-gpu --device cpu --quick --output {file}"
    outcomes = {x.split(" | ")[0][2:]: x.split(" | ")[1:] for x in rows[2:]}
    expected = {x.name: "not run" if x.name in NOT_ON_A_CPU else "passed" for x in quick}
    assert {name: outcome for name, (outcome, _) in outcomes.items() if "python-detr" not in name} == expected
    assert outcomes["inference compared with python-detr"] == [
        "passed",
        "python-detr 20.0 ms, 30 MiB, difference 2e-06; ours 20.0 ms, 2.50 × as fast, 30 MiB, difference 2e-06 |",
    ]
    assert outcomes["training step compared with python-detr"] == ["failed", "error: they disagree |"]
    assert [x[0] for x in benchmarks] == ["inference", "training"]
    assert f"Wrote the report to {file}." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["activation checkpoints", "gradients of one process with DDP"])
def test_wrong_gradients_fail(settings, monkeypatch, name):
    (check,) = [x for x in CHECKS if x.name == name]
    gradients, calls = gpu_checks._gradients, []

    def wrong(model, batch):
        calls.append(1)
        return {key: x + 0.01 * len(calls) * x.norm() for key, x in gradients(model, batch).items()}

    monkeypatch.setattr(gpu_checks, "_gradients", wrong)
    assert run_check(check, settings).outcome == "failed"


def test_wrong_predictions_fail(settings, monkeypatch):
    predict, calls = gpu_checks._predict, []

    def wrong(*args):
        calls.append(1)
        return {name: x + 0.1 * len(calls) for name, x in predict(*args).items()}

    monkeypatch.setattr(gpu_checks, "_predict", wrong)
    monkeypatch.setattr(gpu_checks, "_R50", gpu_checks._SMALL)
    result = run_check(Check("", gpu_checks.half_precision, ("bfloat16",)), settings)
    assert result.outcome == "failed"
    assert "(tolerance 0.15)" in result.figures


def test_what_needs_a_gpu_as_far_as_a_cpu_runs_it(settings, monkeypatch):
    monkeypatch.setattr(Settings, "require_gpu", lambda self: None)
    assert run_check(Check("", gpu_checks.equals_cpu, (gpu_checks._SMALL, 64)), settings).outcome == "passed"
    step = gpu_checks._make_step(settings)
    with EventStorage():
        step.run_step()
    assert len(step.loss_log._steps) == 1


def test_a_crash_is_a_failure(settings):
    def crash(settings):
        raise RuntimeError("no kernel image\nis available")

    assert run_check(Check("x", crash), settings) == ("x", "failed", "RuntimeError: no kernel image")


def test_tf32_is_restored(settings):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        assert run_check(Check("x", lambda settings: str(matmul.allow_tf32)), settings).figures == "False"
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "PyTorch finds no CUDA GPU: add --device cpu"),
        (["--device", "cpu", "--only", "nothing"], "--only: choose from 'float32 equals the CPU, small model', "),
        (["--device", "cpu", "--output", "nowhere/report.md"], "--output nowhere/report.md: there is no folder"),
    ],
)
def test_mistakes(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(["check-gpu", *words]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_without_a_checkout_or_the_original(settings, monkeypatch):
    monkeypatch.setattr(check_gpu.importlib.util, "find_spec", lambda name: None)
    check = check_gpu.all_checks()[-1]
    assert run_check(check, settings).outcome == "not run"
    monkeypatch.setattr(check_gpu, "find_checkout", lambda: None)
    assert "in a checkout" in run_check(check, settings).figures
