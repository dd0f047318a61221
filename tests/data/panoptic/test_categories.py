"""The table of things and stuff, and which classes of a model are things."""

import json

import pytest
from detectron2.data import MetadataCatalog

from detr_d2.data.panoptic import PanopticCategories, coco_panoptic_categories, published_panoptic_rows, things_of_model
from detr_d2.utils.errors import UserError

ROAD, CAR, SKY, BUS = (
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 26, "name": "car", "isthing": 1},
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 11, "name": "bus", "isthing": 1},
)


def test_coco_has_80_things_then_53_stuff():
    table = coco_panoptic_categories()
    assert len(table) == 133
    assert table.is_thing == [True] * 80 + [False] * 53
    assert table.rows[1] == 0
    assert table.rows[90] == 79
    assert table.rows[92] == 80
    assert table.rows[200] == 132
    assert table.names[:2] + table.names[79:81] + table.names[-1:] == [
        "person",
        "bicycle",
        "toothbrush",
        "banner",
        "rug-merged",
    ]


def test_cocos_own_list_gives_the_same_table(real_data):
    path = real_data / "coco_panoptic" / "panoptic_coco_categories.json"
    assert PanopticCategories.from_json(json.loads(path.read_text()), str(path)) == coco_panoptic_categories()


@pytest.mark.parametrize("name", ["coco_2017_train_panoptic", "coco_2017_val_panoptic"])
def test_detectron2s_metadata_are_cocos_table(name):
    """The table is the same for datasets that Detectron2 registered."""
    metadata = MetadataCatalog.get(name)
    table = PanopticCategories.from_metadata(metadata)
    assert table == coco_panoptic_categories()
    for key, value in table.metadata().items():
        assert metadata.get(key) == value, key


def test_detectron2s_other_datasets():
    """Datasets whose stuff comes before things, and datasets that count both separately."""
    table = PanopticCategories.from_metadata(MetadataCatalog.get("cityscapes_fine_panoptic_val"))
    assert len(table) == 19
    assert [name for name, thing in zip(table.names, table.is_thing, strict=True) if thing][:2] == ["person", "rider"]
    for name in ("coco_2017_val_panoptic_separated", "ade20k_sem_seg_val"):
        with pytest.raises(UserError, match=f"{name}.*register_coco_panoptic_dataset"):
            PanopticCategories.from_metadata(MetadataCatalog.get(name))


def test_published_checkpoints_count_by_cocos_ids():
    """Rows are category ids up to 200; no-object is row 250 (the original's num_classes for coco_panoptic)."""
    rows = published_panoptic_rows()
    assert len(rows) == 134
    assert rows[0] == 1
    assert rows[79:81] == [90, 92]
    assert rows[132:] == [200, 250]


def test_own_categories_are_things_then_stuff_by_id():
    table = PanopticCategories.from_json([ROAD, CAR, SKY, BUS], "mine.json")
    assert table.names == ["bus", "car", "sky", "road"]
    assert table.rows == {11: 0, 26: 1, 3: 2, 7: 3}
    metadata = table.metadata()
    assert metadata["thing_classes"] == metadata["stuff_classes"] == table.names
    assert metadata["thing_dataset_id_to_contiguous_id"] == {11: 0, 26: 1}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {3: 2, 7: 3}
    assert "thing_colors" not in metadata


def test_colors_are_kept_if_all_have_one():
    items = [{**item, "color": [number, 0, 255]} for number, item in enumerate((ROAD, CAR))]
    metadata = PanopticCategories.from_json(items, "mine.json").metadata()
    assert metadata["thing_colors"] == metadata["stuff_colors"] == [[1, 0, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    "changes", [{"id": "7"}, {"id": True}, {"id": None}, {"name": 3}, {"isthing": 2}, {"color": [1, 2]}, {"color": 5}]
)
def test_malformed_categories_are_shown(changes):
    with pytest.raises(UserError, match=r"The category .* in mine\.json"):
        PanopticCategories.from_json([CAR, {**ROAD, **changes}], "mine.json")


def test_missing_and_repeated():
    without = {key: value for key, value in ROAD.items() if key != "isthing"}
    for items, message in (
        ([without], "isthing"),
        (["road"], "The category road"),
        ([], "mine.json has no categories"),
        ([CAR, {**ROAD, "id": 26}], "category id 26 more than once, for 'car' and 'road'"),
    ):
        with pytest.raises(UserError, match=message):
            PanopticCategories.from_json(items, "mine.json")


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
def test_things_of_the_datasets(make_cfg, dataset, split):
    assert things(make_cfg, 3, f"DATASETS.{split}", (dataset,)) == (False, True, False)


def test_the_config_has_precedence(make_cfg, dataset):
    options = ("DATASETS.TEST", (dataset,), "MODEL.DETR.PANOPTIC.NUM_THINGS")
    assert things(make_cfg, 3, *options, 2) == (True, True, False)
    assert things(make_cfg, 3, *options, 0) == (False, False, False)


def test_coco_without_a_dataset(make_cfg):
    """80 things, 53 stuff."""
    assert things(make_cfg, 133) == (True,) * 80 + (False,) * 53


def test_unknown_things_are_an_error(make_cfg, dataset):
    with pytest.raises(UserError, match=r"NUM_CLASSES 4 .*not_registered: not reg.*NUM_THINGS to the number"):
        things(make_cfg, 4, "DATASETS.TEST", (dataset, "not_registered"))
