import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_d2.inference.predictor import find_categories

THINGS = [x for x in COCO_CATEGORIES if x["isthing"]]


@pytest.fixture
def pets():
    MetadataCatalog.get("test_pets").set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 1, 23: 0})
    yield "test_pets"
    MetadataCatalog.pop("test_pets")


def find(make_cfg, datasets, num_classes, checkpoint_names=None):
    cfg = make_cfg("DATASETS.TEST", tuple(datasets), "DATASETS.TRAIN", ())
    found = find_categories(cfg, num_classes, checkpoint_names)
    return list(zip(found.ids, found.names, strict=True))


def test_ids_and_names_of_a_dataset(make_cfg, pets):
    """Category ids with gaps, in another order than the rows."""
    assert find(make_cfg, [pets], 2) == [(23, "cat"), (7, "dog")]
    assert find(make_cfg, [pets], 2, ["cat", "dog"]) == [(23, "cat"), (7, "dog")]


def test_the_checkpoint_comes_first(make_cfg, pets):
    """Other names than the dataset's have other ids."""
    assert find(make_cfg, [pets], 2, ["fox", "owl"]) == [(1, "fox"), (2, "owl")]


def test_coco(make_cfg, pets):
    expected = [(x["id"], x["name"]) for x in THINGS]
    assert find(make_cfg, [pets], 80) == expected
    assert find(make_cfg, ["coco_2017_val"], 80) == expected
    by_id = find(make_cfg, [], 91)
    assert (by_id[0], by_id[1], by_id[90]) == ((0, "class 0"), (1, "person"), (90, "toothbrush"))


def test_no_names_at_all(make_cfg, pets, caplog):
    """One warning."""
    assert find(make_cfg, [pets], 3) == [(1, "class 0"), (2, "class 1"), (3, "class 2")]
    assert caplog.text.count("has the names of the 3 classes") == 1
