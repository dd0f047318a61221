"""The command ``import-via``, on the real files."""

import json
import os

import pytest

from detr_d2.cli.import_via import main


@pytest.fixture
def arguments(real_data, tmp_path):
    """Return the arguments for the real project, and the file that is written."""
    via, images = real_data / "via" / "via2_project.json", real_data / "coco" / "train2017"
    return [str(via), "--images", str(images), "--output", str(tmp_path / "coco.json")], tmp_path / "coco.json"


def test_writes_and_summarizes(arguments, capsys):
    words, output = arguments
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"{output}: 8 images (0 without objects), 95 objects of 23 classes: bicycle 1, bottle 6" in printed
    assert len(json.loads(output.read_text())["annotations"]) == 95


def test_training_and_validation(arguments, tmp_path, capsys):
    words, output = arguments
    split = ["--val-output", str(tmp_path / "val.json"), "--val-share", "0.25"]
    assert main(["--input", words[0], *words[1:], *split, "--class-attribute", "name"]) == 0
    train, val = (json.loads(path.read_text()) for path in (output, tmp_path / "val.json"))
    assert (len(train["images"]), len(val["images"])) == (6, 2)
    assert train["categories"] == val["categories"]
    assert "6 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--categories", "cat, dog"], "is not among the categories cat, dog"),
        (["--class-attribute", "nam"], "No region has the attribute 'nam'; there are: name (95 of 95 regions)"),
        (["--images", "nowhere"], "folder nowhere does not exist"),
        (["--val-output", "nowhere/val.json"], "nowhere/val.json can't be written"),
        (["--val-output", "coco.json"], "are the same file"),
    ],
)
def test_mistakes_leave_no_file(arguments, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments[0], *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_one_line(arguments, tmp_path, capsys):
    assert main([str(tmp_path / "none.json"), *arguments[0][1:]]) == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'none.json'} does not exist: give the path of a VIA file" in error
    assert "Traceback" not in error
    assert main(arguments[0][1:]) == 1
    assert "Give the project or annotations saved by VIA" in capsys.readouterr().err
