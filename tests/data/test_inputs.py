import io
import logging
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

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
    ("text", "name", "kind"),
    [
        ("https://example.org/days/a.jpg?size=2", "a.jpg", "image"),
        ("http://example.org/clip.mp4", "clip.mp4", "video"),
        ("rtsp://user@camera.local:554/main", "main", "live"),
        ("0", "camera 0", "live"),
    ],
)
def test_addresses(text, name, kind):
    (found,) = find_inputs([text, text])
    assert (found.source, found.name) == (text, name)
    assert (found.is_video, found.is_live) == {"image": (False, False), "video": (True, False), "live": (True, True)}[
        kind
    ]


def test_a_file_that_is_called_like_a_camera(folder, monkeypatch):
    (folder / "0").touch()
    monkeypatch.chdir(folder)
    assert not find_inputs(["0"])[0].is_live


@pytest.fixture
def set_stdin(monkeypatch):
    return lambda content: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_an_image_in_standard_input(set_stdin):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    set_stdin(buffer.getvalue())
    (found,) = find_inputs(["-"])
    assert (found.name, found.content) == ("stdin.png", buffer.getvalue())
    assert not found.is_video


def test_names_in_standard_input(folder, set_stdin):
    set_stdin(f"{folder / 'a.jpg'}\n\n {folder / 'day1'}\r\nhttp://example.org/b.png\n".encode())
    assert names("-", folder / "a.jpg") == ["a.jpg", "a_2.jpg", "clip.MP4", "b.png"]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00\x81"])
def test_neither_in_standard_input(set_stdin, content):
    set_stdin(content)
    with pytest.raises(UserError, match="neither an image nor names"):
        find_inputs(["-"])


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
