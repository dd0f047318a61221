"""Formats written and read by an independent library, globox, from and to COCO's format; and two forms of real data."""

import json
from pathlib import Path

import pytest
from globox import AnnotationSet

from detr_d2.data.formats import Source, read_dataset, to_coco

NAMES = ["RBC", "WBC", "Platelets"]


@pytest.fixture(scope="module")
def cells(real_data, tmp_path_factory):
    """Return a COCO file of the first five test images of blood cells, with links to the images beside it."""
    folder = tmp_path_factory.mktemp("cells")
    content = json.loads((real_data / "bccd" / "test.json").read_text())
    content["images"] = content["images"][:5]
    ids = {x["id"] for x in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in ids]
    (folder / "images").mkdir()
    for image in content["images"]:
        name = image["file_name"]
        (folder / "images" / name).symlink_to((real_data / "bccd" / "images" / name).resolve())
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def boxes(annotations):
    """Return sorted (class, box) by the name of the image; YOLO's six decimals are 0.001 pixels."""
    return {x.image_id: sorted((box.label, *(round(v, 1) for v in box.ltrb)) for box in x.boxes) for x in annotations}


def our_boxes(path, tmp_path, **options):
    """Return the boxes that globox reads in what we convert from ``path``."""
    source = Source(Path(path), **options)
    _, dataset = read_dataset(source)
    (coco,), _ = to_coco(dataset, [dataset.images], source)
    (tmp_path / "ours.json").write_text(json.dumps(coco))
    return boxes(AnnotationSet.from_coco(tmp_path / "ours.json"))


def write_yolo(annotations, folder):
    numbers = {name: number for number, name in enumerate(NAMES)}
    annotations.save_yolo_v5(folder, label_to_id=numbers)
    (folder / "classes.txt").write_text("\n".join(NAMES))


WRITERS = {
    "voc": lambda annotations, folder: annotations.save_pascal_voc(folder),
    "labelme": lambda annotations, folder: annotations.save_labelme(folder),
    "cvat": lambda annotations, folder: annotations.save_cvat(folder / "annotations.xml"),
    "via": lambda annotations, folder: annotations.save_via_json(
        folder / "via.json", image_folder=folder.parent / "images"
    ),
    "coco": lambda annotations, folder: annotations.save_coco(folder / "some.json"),
    "yolo": write_yolo,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_another_library_writes_is_read(cells, tmp_path, name):
    annotations = AnnotationSet.from_coco(cells)
    folder = tmp_path / "written"
    folder.mkdir()
    (tmp_path / "images").symlink_to(cells.parent / "images")
    WRITERS[name](annotations, folder)
    expected = boxes(annotations)
    found = our_boxes(folder, tmp_path, images=tmp_path / "images" if name == "yolo" else None)
    assert found == expected
    assert sum(map(len, found.values())) == 88


def test_voc_and_coco_files_of_the_same_cells_are_the_same_records(real_data):
    """Equal images, boxes, areas, ids and classes: training on either is the same."""
    parts = []
    for path, classes in ((real_data / "bccd" / "voc", NAMES), (real_data / "bccd", None)):
        source = Source(path, classes=classes)
        _, dataset = read_dataset(source)
        splits = [dataset.select(x) for x in (("trainval", "test") if classes else ("train", "test"))]
        parts.append(to_coco(dataset, splits, source))
    (voc, voc_root), (coco, coco_root) = parts
    assert voc_root == coco_root
    assert [len(x["images"]) for x in voc] == [292, 72]
    for ours, theirs, file in zip(voc, coco, ("train", "test"), strict=True):
        assert ours == theirs
        original = json.loads((real_data / "bccd" / f"{file}.json").read_text())
        assert ours["categories"] == original["categories"]
        assert ours["images"] == original["images"]
        assert ours["annotations"] == original["annotations"]


def test_real_yolo_boxes(real_data, tmp_path):
    """128 photographs of COCO, read by globox."""
    folder = real_data / "coco128"
    images = folder / "images" / "train2017"
    expected = {}
    for file in sorted((folder / "labels" / "boxes").glob("*.txt")):
        if (images / f"{file.stem}.jpg").exists():
            expected[f"{file.stem}.jpg"] = len(file.read_text().splitlines())
    found = our_boxes(folder / "labels" / "boxes", tmp_path)
    assert len(found) == 128
    assert {name: len(rows) for name, rows in found.items() if rows} == expected
