"""Finding the benchmarks, and their exit code."""

import pytest

from benchmarks import command
from detr_d2.cli import benchmark


def test_the_checkout_around_the_current_folder(repository, monkeypatch):
    monkeypatch.setattr(benchmark, "_PACKAGE", repository / "nothing" / "detr_d2")
    monkeypatch.chdir(repository / "docs")
    assert benchmark.find_checkout() == repository


def test_the_checkout_of_the_package(repository, monkeypatch, tmp_path):
    """A folder "benchmarks" of another project is skipped."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert benchmark.find_checkout() == repository


def test_without_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "_PACKAGE", tmp_path / "site-packages" / "detr_d2")
    monkeypatch.chdir(tmp_path)
    assert benchmark.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the benchmarks are not installed")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_runs_in_its_own_process(run_script):
    found = run_script("tools/benchmark.py", "criterion", "--batch", "0")
    assert found.returncode == 1
    assert "error: --batch [0]: give numbers of at least 1." in found.stderr


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("benchmark_matchers.py", "argument measure: invalid choice: 'criterion'"),
        ("compare_convergence.py", "the following arguments are required: --config-file"),
    ],
)
def test_scripts(run_script, monkeypatch, script, message):
    monkeypatch.setattr(benchmark, "main", command.main)
    found = run_script(f"tools/{script}", "criterion", "--batch", "0")
    assert found.returncode == 2
    assert message in found.stderr
