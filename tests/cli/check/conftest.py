"""A good dataset to plant faults in, and the command to find them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from detr_d2.cli.check import main

WIDTH, HEIGHT = 60, 40


class Dataset:
    """A good dataset of three images and six objects, to plant faults in."""

    def __init__(self, folder):
        self.folder = folder
        self.json_file = folder / "train.json"
        self.images = folder / "images"
        self.images.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for number in (1, 2, 3):
            Image.fromarray(pixels).save(self.images / f"{number}.png")
        common = {"iscrowd": 0, "area": 200.0, "segmentation": [[5, 6, 25, 6, 25, 16]]}
        self.content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)],
            "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [
                {
                    "id": 10 + i,
                    "image_id": 1 + i % 3,
                    "category_id": (4, 9)[i % 2],
                    "bbox": [5 + i, 6, 20, 10],
                    **common,
                }
                for i in range(6)
            ],
        }
        self.save()

    def save(self):
        self.json_file.write_text(json.dumps(self.content))

    def arguments(self):
        return ["--json", str(self.json_file), "--images", str(self.images)]


@pytest.fixture
def make_dataset(tmp_path):
    """``make_dataset(name)``: a good dataset in a folder of its own."""
    return lambda name: Dataset(tmp_path / name)


@pytest.fixture
def dataset(make_dataset):
    return make_dataset("data")


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """Return a function that runs the command and returns the exit code, the report, and what was printed."""

    def run(*arguments, preview=False):
        if not preview:
            monkeypatch.setattr("detr_d2.visualization.dataset_preview.draw_preview", lambda *_, **__: Figure((1, 1)))
        output = tmp_path / "checked"
        code = main([*map(str, arguments), "--output", str(output)])
        printed = capsys.readouterr()
        path = output / "report.json"
        return code, json.loads(path.read_text()) if path.exists() else None, printed.out + printed.err

    return run


@pytest.fixture
def problems():
    """``problems(report)``: (severity, code) of all errors and warnings."""
    return _problems


@pytest.fixture
def notes():
    """``notes(report)``: the codes of all notes."""
    return _notes


def _problems(report):
    found = [*report["between_datasets"], *(x for part in report["datasets"] for x in part["findings"])]
    return [(x["severity"], x["code"]) for x in found if x["severity"] != "note"]


def _notes(report):
    return [x["code"] for part in report["datasets"] for x in part["findings"] if x["severity"] == "note"]
