"""tools/compare_convergence.py: schedules, tables, and a run of two configs cut short."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from detr_d2.engine import load_config

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "compare_convergence.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_convergence_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_learning_rate_drops_after_the_same_share(tool, repository, tmp_path):
    cfg = load_config(str(repository / "configs" / "detr_128_2_3_cpu.yaml"), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1000, (800,))
    short = tool.scheduled(cfg, tmp_path, iterations=250, every=10)
    assert (short.SOLVER.MAX_ITER, short.SOLVER.STEPS, short.TEST.EVAL_PERIOD) == (250, (200,), 10)
    assert tool.scheduled(cfg, tmp_path, iterations=None, every=10).SOLVER.MAX_ITER == 1000


def test_a_table_has_gaps_where_a_run_was_not_evaluated(tool):
    table = tool.format_table({"a": {100: 1.25, 200: 3.0}, "b": {200: 4.0}}).splitlines()
    assert [cell.strip() for cell in table[2].strip("|").split("|")] == ["100", "1.2", ""]
    assert [cell.strip() for cell in table[3].strip("|").split("|")] == ["200", "3.0", "4.0"]


def run(tmp_path, repository, real_data, monkeypatch, *arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    configs = [str(repository / "configs" / f"{name}_128_2_3_cpu.yaml") for name in ("detr", "smca")]
    command = [sys.executable, str(SCRIPT), "--memorize", "1", "--configs", *configs, *arguments]
    sizes = ("INPUT.MIN_SIZE_TEST", "64", "MODEL.DETR.HIDDEN_DIM", "32", "SOLVER.IMS_PER_BATCH", "1")
    return subprocess.run([*command, *sizes, "OUTPUT_DIR", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow
def test_two_configs_end_in_a_table_and_a_picture(tmp_path, repository, real_data, monkeypatch):
    done = run(
        tmp_path, repository, real_data, monkeypatch, "--every", "2", "--iterations", "4", "2", "--metric", "AP50"
    )
    assert done.returncode == 0, done.stderr
    assert "detr_128_2_3_cpu in 4" in done.stdout
    table = (tmp_path / "convergence.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["2", "4"]
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


def test_numbers_that_do_not_go_with_the_configs(tmp_path, repository, real_data, monkeypatch):
    done = run(tmp_path, repository, real_data, monkeypatch, "--iterations", "4", "2", "1")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --iterations takes one number")
