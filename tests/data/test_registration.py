import json
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data import register_coco_dataset
from detr_d2.utils.errors import UserError


@pytest.fixture
def name():
    name = "test_registration"
    yield name
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def write(tmp_path, make_image):
    """Return a function that writes annotations of one image with one object per category and returns their path."""

    def write(category_ids, **changes):
        make_image(name="a.png")
        box = {"image_id": 1, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0, "segmentation": []}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "categories": [{"id": number, "name": f"class {number}"} for number in category_ids],
            "annotations": [{"id": i, "category_id": number, **box} for i, number in enumerate(category_ids, start=1)],
        }
        path = tmp_path / "own.json"
        path.write_text(json.dumps({**content, **changes}))
        return path

    return write


@pytest.mark.parametrize("ids", [[1, 23, 56], [0, 1], [56, 1, 23]], ids=str)
def test_classes_are_known_before_and_after_loading(name, write, tmp_path, ids):
    """Ids with gaps, ids from 0, and ids out of order."""
    classes = register_coco_dataset(name, write(ids), tmp_path)
    expected = [f"class {number}" for number in sorted(ids)]
    assert classes == MetadataCatalog.get(name).thing_classes == expected
    (record,) = DatasetCatalog.get(name)
    labels = [expected[annotation["category_id"]] for annotation in record["annotations"]]
    assert labels == [f"class {number}" for number in ids]
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_real_annotations(name, coco_paths):
    images, annotations = coco_paths
    assert register_coco_dataset(name, str(annotations), str(images))[:2] == ["person", "bicycle"]
    assert len(DatasetCatalog.get(name)) == 50


def test_registering_again(name, write, tmp_path, monkeypatch):
    """In a notebook: the same cell run again, also after the annotations were corrected."""
    register_coco_dataset(name, str(write([1])), str(tmp_path))
    assert len(DatasetCatalog.get(name)) == 1
    write([1, 2])
    monkeypatch.chdir(tmp_path)
    assert register_coco_dataset(name, "own.json", ".") == ["class 1", "class 2"]
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 2


def test_a_name_for_other_files(name, write, tmp_path):
    path = write([1])
    register_coco_dataset(name, path, tmp_path)
    other = tmp_path / "other.json"
    shutil.copy(path, other)
    with pytest.raises(
        UserError, match=rf"'{name}' is registered for .*own\.json.*can't be used for .*other\.json.*another name"
    ):
        register_coco_dataset(name, other, tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match=f"images in {tmp_path / 'more'}"):
        register_coco_dataset(name, path, tmp_path / "more")
    assert MetadataCatalog.get(name).json_file == str(path)


def test_a_name_without_files(write, tmp_path, catalog):
    catalog("test_other_source", [])
    with pytest.raises(UserError, match="'test_other_source' is registered for a dataset from another source"):
        register_coco_dataset("test_other_source", write([1]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, r"own\.json has no categories"),
        ({"categories": None}, r"own\.json has no list 'categories'"),
        ({"images": []}, r"own\.json has no images"),
        ({"categories": [{"id": "1", "name": "a"}]}, r"category .* in .*own\.json lacks an integer 'id'"),
        ({"categories": [{"id": 1}]}, "or a string 'name'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "id 1 twice, 'a' and 'b'"),
        ({"images": [{"id": 7, "file_name": x} for x in "ab"]}, r"own\.json has 2 images of id 7: give each"),
    ],
)
def test_other_contents(name, write, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        register_coco_dataset(name, write([1], **changes), tmp_path)
    assert name not in DatasetCatalog


def test_classes_of_one_name_are_named(name, write, tmp_path, caplog):
    register_coco_dataset(name, write([1], categories=[{"id": x, "name": "pistol"} for x in (1, 2)]), tmp_path)
    assert "classes of one name: pistol" in caplog.text


@pytest.mark.parametrize("file", ["via1_region_data.json", "via2_project.json"])
def test_via_files_are_recognized(name, real_data, file):
    with pytest.raises(UserError, match=r"VGG Image Annotator.*detr-d2 import-via"):
        register_coco_dataset(name, real_data / "via" / file, real_data)


def test_panoptic_files_are_recognized(name, real_data):
    folder = real_data / "coco_panoptic"
    with pytest.raises(UserError, match=r"panoptic_examples\.json is in COCO's panoptic format.*--train-panoptic"):
        register_coco_dataset(name, folder / "panoptic_examples.json", folder / "input_images")


def test_the_keys_of_other_files_are_named(name, tmp_path):
    (tmp_path / "other.json").write_text('{"license": 1, "image": []}')
    with pytest.raises(UserError, match=r"no list 'images'.*its keys are license, image\."):
        register_coco_dataset(name, tmp_path / "other.json", tmp_path)


def test_wrong_paths(name, write, tmp_path):
    path = write([1])
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        register_coco_dataset(name, tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match=r"image folder .*nowhere"):
        register_coco_dataset(name, path, tmp_path / "nowhere")
    path.write_text("{")
    with pytest.raises(UserError, match=r"own\.json is not valid JSON"):
        register_coco_dataset(name, path, tmp_path)
    assert name not in DatasetCatalog


@pytest.mark.parametrize("width", [0, -3])
def test_an_image_without_pixels(name, write, tmp_path, width):
    path = write([1], images=[{"id": 1, "file_name": "a.png", "width": width, "height": 40}])
    with pytest.raises(UserError, match=r"Image 'a\.png' in .*own\.json has a width or height under 1"):
        register_coco_dataset(name, path, tmp_path)


def test_an_rle_with_a_negative_run(name, write, tmp_path):
    """Older versions of numpy accept it as a run of four billion pixels."""
    rle = {"size": [40, 60], "counts": [605, -10, 1805]}
    crowd = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 1}
    path = write([1], annotations=[{**crowd, "segmentation": rle}])
    with pytest.raises(UserError, match=r"annotation of id 7 in .*own\.json has an RLE with a negative number"):
        register_coco_dataset(name, path, tmp_path)
