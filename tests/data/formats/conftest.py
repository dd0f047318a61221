"""Small datasets of other formats, and the conversion of one."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_d2.data.formats import Source, read_dataset, to_coco

WIDTH, HEIGHT = 60, 40


@pytest.fixture
def folder(tmp_path):
    """Return a folder that has images/a.png and b.png, of 60 x 40 pixels."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
    return tmp_path


@pytest.fixture
def write(folder):
    """Return a function that writes a file below the folder, text or JSON, and returns its path."""

    def write(name: str, content: object) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


class Converted:
    """Result of a conversion: COCO's dict, the folder of the images, and the notes."""

    def __init__(self, path, name=None, split=None, **options):
        source = Source(Path(path), **options)
        self.found, self.dataset = read_dataset(source, name)
        images = self.dataset.select(split) if split else self.dataset.images
        (self.coco,), self.root = to_coco(self.dataset, [images], source)
        self.notes = source.notes.lines()

    def objects(self) -> dict[str, list]:
        """Return class, box and polygons of the objects by the name of the image file."""
        names = {x["id"]: x["name"] for x in self.coco["categories"]}
        found = {x["file_name"]: [] for x in self.coco["images"]}
        files = {x["id"]: x["file_name"] for x in self.coco["images"]}
        for x in self.coco["annotations"]:
            row = (names[x["category_id"]], x["bbox"], *([x["segmentation"]] if "segmentation" in x else []))
            found[files[x["image_id"]]].append(row)
        return found


@pytest.fixture
def convert():
    """Return a function that converts a dataset: ``convert(path, format, split, **options of Source)``."""
    return Converted
