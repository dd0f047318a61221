"""Which classes of a model are things."""

import pytest
from detectron2.data import MetadataCatalog

from detr_d2.data.panoptic.things import things_of_model
from detr_d2.utils.errors import UserError

DATASET = "test_things"


@pytest.fixture
def dataset():
    """Stuff in the first row, as in Detectron2's Cityscapes."""
    MetadataCatalog.get(DATASET).set(
        thing_classes=["road", "car", "sky"],
        thing_dataset_id_to_contiguous_id={26: 1},
        stuff_dataset_id_to_contiguous_id={7: 0, 23: 2},
    )
    yield DATASET
    MetadataCatalog.remove(DATASET)


def things(make_cfg, num_classes: int, *options) -> tuple[bool, ...]:
    return things_of_model(make_cfg("MODEL.DETR.NUM_CLASSES", num_classes, *options))


@pytest.mark.parametrize("split", ["TEST", "TRAIN"])
def test_datasets_tell(make_cfg, dataset, split):
    assert things(make_cfg, 3, f"DATASETS.{split}", (dataset,)) == (False, True, False)


def test_the_config_has_precedence(make_cfg, dataset):
    options = ("DATASETS.TEST", (dataset,), "MODEL.DETR.PANOPTIC.NUM_THINGS")
    assert things(make_cfg, 3, *options, 2) == (True, True, False)
    assert things(make_cfg, 3, *options, 0) == (False, False, False)


def test_coco_without_a_dataset(make_cfg):
    """80 things, 53 stuff."""
    assert things(make_cfg, 133) == (True,) * 80 + (False,) * 53


def test_nobody_tells(make_cfg, dataset):
    with pytest.raises(UserError, match=r"NUM_CLASSES 4 .*not_registered: not reg.*NUM_THINGS to the number"):
        things(make_cfg, 4, "DATASETS.TEST", (dataset, "not_registered"))
