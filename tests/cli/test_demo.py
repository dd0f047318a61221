"""The demo, cut short: it trains, evaluates and writes its report."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_report(repository, tmp_path):
    options = {
        "SOLVER.MAX_ITER": 3,
        "SOLVER.STEPS": "(2,)",
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.EVAL_PERIOD": 0,
        "DATASETS.TRAIN": "('shapes_val',)",
        "MODEL.DETR.HIDDEN_DIM": 32,
        "OUTPUT_DIR": tmp_path / "demo",
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(repository / "tools" / "demo.py"), *words]
    environment = {**os.environ, "DETR_D2_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AP50" in done.stdout
    assert "box AP" in done.stdout
    path = re.search(r"The report: (\S+report.html)", done.stdout)[1]
    html = (tmp_path / path).read_text(encoding="utf-8")
    assert html.count("data:image/png") == 8 + 1 + 2
    for text in ("SMCA-DETR (type2, focal loss)", "disc", "MAX_ITER 3", "shapes_val"):
        assert text in html
