import logging

import pytest

from detr_d2.data.inputs import find_inputs
from detr_d2.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "B.JPG", "day1/a.jpg", "day1/clip.MP4", "day2/a.png", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(*inputs) -> list[str]:
    return [x.name for x in find_inputs([str(x) for x in inputs])]


def test_a_folder_and_what_lies_below(folder, caplog):
    caplog.set_level(logging.INFO, logger="detr_d2")
    found = find_inputs([str(folder)])
    assert [x.name for x in found] == ["B.JPG", "a.jpg", "day1/a.jpg", "day1/clip.MP4", "day2/a.png"]
    assert [x.name for x in found if x.is_video] == ["day1/clip.MP4"]
    assert "1 of its files" in caplog.text
    assert "notes.txt" in caplog.text


def test_equal_names_get_a_number(folder):
    assert names(folder / "a.jpg", folder / "day1" / "a.jpg") == ["a.jpg", "a_2.jpg"]
    assert names(folder / "day1", folder / "day2", folder / "a.jpg") == ["a.jpg", "clip.MP4", "a.png", "a_2.jpg"]


def test_patterns(folder):
    assert names(folder / "day*" / "a.*") == ["a.jpg", "a.png"]
    assert names(folder / "**" / "*.png") == ["a.png"]


def test_every_file_once(folder):
    assert names(folder / "a.jpg", folder / "*.jpg", folder / "day1" / ".." / "a.jpg") == ["a.jpg"]


def test_a_file_that_is_named_is_always_an_input(folder):
    """It is read later, where errors are reported."""
    assert names(folder / "notes.txt") == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere does not exist"),
        ("*.bmp", r"No file matches the pattern .*\*\.bmp"),
        ("*.txt", "has no images and no videos, but 1 other files, such as notes.txt"),
        ("empty", "empty has no images and no videos: it is empty"),
    ],
)
def test_refusals(folder, name, words):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        names(folder / name)
