"""The converter as a user runs it, on the real files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "via_to_coco.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("via_to_coco_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def arguments(real_data, tmp_path):
    """The arguments for the real project, and the file that is written."""
    via, images = real_data / "via" / "via2_project.json", real_data / "coco" / "train2017"
    return [str(via), "--images", str(images), "--output", str(tmp_path / "coco.json")], tmp_path / "coco.json"


def test_as_a_script(arguments):
    words, output = arguments
    result = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{output}: 8 images (0 without objects), 95 objects of 23 classes: bicycle 1, bottle 6" in result.stdout
    assert len(json.loads(output.read_text())["annotations"]) == 95


def test_training_and_validation(main, arguments, tmp_path, capsys):
    words, output = arguments
    main([*words, "--val-output", str(tmp_path / "val.json"), "--val-share", "0.25", "--class-attribute", "name"])
    train, val = (json.loads(path.read_text()) for path in (output, tmp_path / "val.json"))
    assert (len(train["images"]), len(val["images"])) == (6, 2)
    assert train["categories"] == val["categories"]
    assert "6 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--categories", "cat, dog"], "is not among the categories cat, dog"),
        (["--class-attribute", "nam"], r"No region has the attribute 'nam'; there are: name \(95 of 95 regions\)"),
        (["--images", "nowhere"], "folder nowhere does not exist"),
        (["--val-output", "nowhere/val.json"], "nowhere/val.json can't be written"),
        (["--val-output", "coco.json"], "are one file"),
    ],
)
def test_mistakes_leave_no_file(main, arguments, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([*arguments[0], *options])
    assert os.listdir(tmp_path) == []


def test_one_line_and_exit_code_1(arguments, tmp_path):
    words = [str(tmp_path / "none.json"), *arguments[0][1:]]
    result = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"error: {tmp_path / 'none.json'} does not exist: give the path of a VIA file" in result.stderr
    assert "Traceback" not in result.stderr
