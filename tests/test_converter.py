import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def run_converter(repository):
    """A function that runs the script in a process of its own."""

    def run(*arguments) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        command = [sys.executable, str(repository / "converter.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def test_converts_a_file_and_says_what_it_did(run_converter, make_cfg, make_original, tmp_path):
    source, output = tmp_path / "detr.pth", tmp_path / "out.pth"
    torch.save({"model": make_original(make_cfg(), num_classes=91).state_dict()}, source)
    result = run_converter("--source_model", source, "--output_model", output)
    assert result.returncode == 0, result.stderr
    assert "original DETR" in result.stdout
    assert "92 -> 81" in result.stdout
    assert len(result.stdout.splitlines()) < 10
    assert torch.load(output, weights_only=True)["model"]["detr.class_embed.weight"].shape == (81, 32)

    again = run_converter("--source_model", source, "--output_model", output)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert "Traceback" not in again.stderr


def test_mistakes_end_in_one_line(run_converter, tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    result = run_converter("--source_model", tmp_path / "cut.pth", "--output_model", tmp_path / "out.pth")
    assert result.returncode == 1
    assert "cut.pth" in result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["cut.pth"]


def test_wrong_arguments_and_help(run_converter):
    assert run_converter("--source_model", "x").returncode == 2
    result = run_converter("--source_model", "x", "--output_model", "y", "--num-classes", "0")
    assert result.returncode == 2
    assert "foreground" in result.stderr
    result = run_converter("--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout
