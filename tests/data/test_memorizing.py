import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_d2.data import memorizing_config
from detr_d2.utils.errors import UserError


@pytest.fixture
def cfg(make_cfg):
    """Of four records two have objects."""

    def record(name, *crowds):
        return {"file_name": name, "annotations": [{"iscrowd": crowd} for crowd in crowds]}

    records = [record("empty"), record("first", 0), record("crowd", 1), record("second", 1, 0)]
    DatasetCatalog.register("to_learn", lambda: records)
    MetadataCatalog.get("to_learn").set(thing_classes=["a", "b"])
    yield make_cfg("DATASETS.TRAIN", ("to_learn",))
    for name in [x for x in DatasetCatalog.list() if x.startswith("to_learn")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_first_images_with_objects_without_augmentation(cfg):
    small = memorizing_config(cfg, 2)
    (name,) = small.DATASETS.TRAIN
    assert small.DATASETS.TEST == (name,)
    assert [x["file_name"] for x in DatasetCatalog.get(name)] == ["first", "second"]
    assert MetadataCatalog.get(name).thing_classes == ["a", "b"]
    assert not small.INPUT.CROP.ENABLED
    assert small.INPUT.RANDOM_FLIP == "none"
    assert small.INPUT.MIN_SIZE_TRAIN == (small.INPUT.MIN_SIZE_TEST,)
    assert cfg.DATASETS.TRAIN == ("to_learn",)
    assert memorizing_config(cfg, 2).DATASETS.TRAIN == (name,)


def test_too_few_images(cfg):
    with pytest.raises(UserError, match="3 images are to be learned, but dataset 'to_learn' has 2"):
        memorizing_config(cfg, 3)
