"""Folders that are complete or absent."""

import threading

import pytest

from detr_d2.data.shapes.cache import cache_root, cached_folder
from detr_d2.utils.errors import UserError


def test_a_folder_is_filled_once(tmp_path):
    calls = []

    def fill(folder):
        calls.append(folder)
        (folder / "a.txt").write_text("x")

    for _ in range(2):
        assert (cached_folder(tmp_path / "deep" / "set", fill) / "a.txt").read_text() == "x"
    assert len(calls) == 1


def test_of_several_at_once_one_fills_and_the_others_wait(tmp_path):
    calls, started, seen = [], threading.Event(), []

    def fill(folder):
        calls.append(folder)
        started.wait(1)
        (folder / "a.txt").write_text("x")

    def load():
        seen.append((cached_folder(tmp_path / "set", fill) / "a.txt").exists())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert seen == [True] * 4


def test_an_interrupted_fill_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half.txt").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path / "set", fill)
    assert not [x for x in tmp_path.iterdir() if x.suffix != ".lock"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="DETR_D2_CACHE"):
        cached_folder(tmp_path / "file" / "set", lambda folder: None)


def test_the_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DETR_D2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "detr_d2"
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
