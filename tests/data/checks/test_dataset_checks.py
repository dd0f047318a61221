"""Errors and messages of the checks before training starts."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from detr_d2.data import check_datasets
from detr_d2.utils.errors import UserError


@pytest.fixture
def cfg_for(make_cfg):
    """Return a function that makes a config of datasets and a number of classes."""

    def make(train=(), test=(), num_classes=3):
        options = ("DATASETS.TRAIN", tuple(train), "DATASETS.TEST", tuple(test))
        return make_cfg(*options, "MODEL.DETR.NUM_CLASSES", num_classes, "MODEL.DETR.NUM_OBJECT_QUERIES", 100)

    return make


@pytest.fixture
def one_image(make_image, make_annotation):
    """Return a function that makes a dataset of one image with the given annotations."""
    path = make_image()

    def make(*annotations):
        return [{"file_name": path, "height": 40, "width": 60, "image_id": 1, "annotations": list(annotations)}]

    return make


CLASSES = ["cat", "dog", "cow"]


def test_good_datasets_pass_without_messages(cfg_for, coco_catalog, caplog):
    coco_catalog("pets_train", [1, 2, 3])
    coco_catalog("pets_val", [1, 2, 3])
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        check_datasets(cfg_for(["pets_train"], ["pets_val"]))
    assert not caplog.records


def test_real_coco_passes(cfg_for, coco_paths, caplog):
    name = "detr_d2_test_real_coco"
    register_coco_instances(name, {}, str(coco_paths[1]), str(coco_paths[0]))
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        check_datasets(cfg_for([name], [name], num_classes=80))
    assert not caplog.records


@pytest.mark.parametrize("train", [True, False])
def test_no_dataset(cfg_for, train):
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is empty" if train else r"DATASETS\.TEST is empty"):
        check_datasets(cfg_for(), train=train)


def test_unknown_name_gets_similar_ones(cfg_for):
    with pytest.raises(UserError, match=r"'coco_2017_trian' .* not registered.* coco_2017_train"):
        check_datasets(cfg_for(["coco_2017_trian"]))


def test_evaluation_checks_test_sets_only(cfg_for, coco_catalog):
    coco_catalog("pets_val", [1, 2, 3])
    check_datasets(cfg_for(["missing"], ["pets_val"]), train=False)
    with pytest.raises(UserError, match="'missing'"):
        check_datasets(cfg_for(["missing"], ["pets_val"]))


def test_training_without_evaluation_checks_training_sets_only(cfg_for, coco_catalog):
    coco_catalog("pets_train", [1, 2, 3])
    check_datasets(cfg_for(["pets_train"], ["missing"]), test=False)


def test_missing_files_are_named(cfg_for, coco_catalog, tmp_path, monkeypatch):
    path = coco_catalog("pets", [1, 2, 3])
    (tmp_path / "pets.png").unlink()
    with pytest.raises(UserError, match=r"pets\.png, which does not exist"):
        check_datasets(cfg_for(["pets"]))
    path.unlink()
    with pytest.raises(UserError, match=r"pets\.json, which does not exist: correct the path"):
        check_datasets(cfg_for(["pets"]))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=r"pets\.json, .* variable DETECTRON2_DATASETS .*it is /"):
        check_datasets(cfg_for(["pets"]))


def test_missing_image_folder_is_named(cfg_for, coco_catalog, tmp_path):
    path = coco_catalog("pets", [1, 2, 3])
    MetadataCatalog.remove("pets")
    MetadataCatalog.get("pets").set(json_file=str(path), image_root=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone, which does not exist"):
        check_datasets(cfg_for(["pets"]))


def test_builtin_dataset_without_its_folder(cfg_for, monkeypatch):
    """Without the variable, Detectron2's own datasets are looked for in ./datasets."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    metadata = MetadataCatalog.get("coco_2014_minival")
    monkeypatch.setitem(metadata.__dict__, "json_file", "datasets/coco/annotations/none.json")
    with pytest.raises(UserError, match=r"none\.json, .*DETECTRON2_DATASETS.* not set"):
        check_datasets(cfg_for(["coco_2014_minival"], num_classes=80))


def test_number_of_classes(cfg_for, catalog, one_image, make_annotation):
    """The message names key, dataset, classes and the fix."""
    catalog("balloon_train", one_image(make_annotation()), thing_classes=["balloon"])
    expected = (
        "MODEL.DETR.NUM_CLASSES is 80 but dataset 'balloon_train' has 1 thing class (balloon): "
        "set MODEL.DETR.NUM_CLASSES 1. Do not count a no-object class."
    )
    for train in (True, False):
        with pytest.raises(UserError) as caught:
            check_datasets(cfg_for(["balloon_train"], ["balloon_train"], 80), train=train)
        assert str(caught.value) == expected
    check_datasets(cfg_for(["balloon_train"], num_classes=1))


def test_many_class_names_are_abbreviated(cfg_for, catalog, one_image, make_annotation):
    catalog("many", one_image(make_annotation()), thing_classes=[f"c{i}" for i in range(200)])
    with pytest.raises(UserError, match=r"200 thing classes \(c0, c1, c2, c3, c4, … 195 more\)"):
        check_datasets(cfg_for(["many"], num_classes=201))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog", "pig"], "only 'a' has cow; only 'b' has pig"),
        (["cat", "dog"], "only 'a' has cow"),
        (["dog", "cat", "cow"], "the same names in another order"),
    ],
)
def test_categories_that_differ(cfg_for, catalog, one_image, make_annotation, classes, message):
    """Between training sets, and between training and validation."""
    catalog("a", one_image(make_annotation()), thing_classes=CLASSES)
    catalog("b", one_image(make_annotation()), thing_classes=classes)
    for train, test in ((["a", "b"], []), (["a"], ["b"])):
        with pytest.raises(UserError, match=f"'a' and 'b' have different classes: .*{message}"):
            check_datasets(cfg_for(train, test))


def test_label_out_of_range(cfg_for, catalog, one_image, make_annotation):
    """0 is a class, NUM_CLASSES is not."""
    annotations = [make_annotation(id=i, category_id=i) for i in range(3)]
    catalog("good", one_image(*annotations))
    check_datasets(cfg_for(["good"]))
    catalog("bad", one_image(*annotations, make_annotation(id=31, category_id="3")))
    with pytest.raises(UserError, match=r"category_id 3 of annotation id 31 of image .*png is not in \[0, 3\)"):
        check_datasets(cfg_for(["bad"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, float("nan"), 2, 3]}, "is not finite"),
        ({"bbox": [1, 2, 3]}, "can't be read"),
        ({"bbox": ...}, "No 'bbox' in"),
        ({"category_id": -1}, "category_id -1"),
        ({"category_id": "dog"}, "category_id 'dog'"),
        ({"category_id": ...}, "category_id None"),
    ],
)
@pytest.mark.parametrize("number", [5, ...])
def test_bad_annotation_is_named(cfg_for, catalog, one_image, make_annotation, changes, message, number):
    """By its id, or its position among all annotations of its image."""
    annotations = [make_annotation(iscrowd=1), make_annotation(), make_annotation(id=number, **changes)]
    catalog("bad", one_image(*annotations), thing_classes=CLASSES)
    where = "id 5" if number == 5 else "number 2"
    with pytest.raises(UserError, match=message) as caught:
        check_datasets(cfg_for(["bad"]))
    assert f"annotation {where}" in str(caught.value)
    assert "image.png" in str(caught.value)


def test_category_as_a_string_is_read(cfg_for, catalog, one_image, make_annotation):
    """Also boxes of several modes in one dataset."""
    xyxy = make_annotation(bbox=[1, 2, 30, 20], bbox_mode=BoxMode.XYXY_ABS, category_id="2")
    catalog("mixed", one_image(make_annotation(), xyxy), thing_classes=CLASSES)
    check_datasets(cfg_for(["mixed"]))


@pytest.mark.parametrize("kind", ["crowds", "nothing", "no key", "no area"])
def test_nothing_to_learn_from(cfg_for, catalog, one_image, make_annotation, kind):
    """No image with objects is an error in training; the same dataset may be evaluated on."""
    records = {
        "crowds": one_image(make_annotation(iscrowd=1)),
        "nothing": one_image(),
        "no key": [{key: value for key, value in one_image()[0].items() if key != "annotations"}],
        "no area": one_image(make_annotation(bbox=[1, 1, 0, 5])),
    }[kind]
    catalog("empty", records, thing_classes=CLASSES)
    with pytest.raises(UserError, match="'empty': no object to learn from"):
        check_datasets(cfg_for(["empty"]))
    check_datasets(cfg_for([], ["empty"]), train=False)


def test_dropped_boxes_are_counted(cfg_for, catalog, one_image, make_annotation, caplog):
    """Boxes without width, and boxes fully outside the image."""
    boxes = [[5, 5, 10, 10], [5, 5, 0, 10], [70, 5, 10, 10], [-3, 5, 4, 5]]
    records = one_image(*[make_annotation(id=i, bbox=box) for i, box in enumerate(boxes)])
    catalog("some", records, thing_classes=CLASSES)
    check_datasets(cfg_for(["some"]))
    assert "2 of 4 boxes have no area inside their image and are dropped, e.g. annotation id 1" in caplog.text


def test_xyxy_declared_as_xywh(cfg_for, catalog, one_image, make_annotation, caplog):
    """Corners instead of sizes are recognized by the share of boxes that leave their image."""
    rng = np.random.default_rng(0)
    corners = [np.sort(rng.integers(0, [[60, 40]], (2, 2)), axis=0).ravel().tolist() for _ in range(50)]
    right = [[x0, y0, x1 - x0 + 1, y1 - y0 + 1] for x0, y0, x1, y1 in corners]
    catalog("right", one_image(*[make_annotation(bbox=box) for box in right]), thing_classes=CLASSES)
    check_datasets(cfg_for(["right"]))
    assert "XYXY" not in caplog.text
    catalog("wrong", one_image(*[make_annotation(bbox=box) for box in corners]), thing_classes=CLASSES)
    check_datasets(cfg_for(["wrong"]))
    assert "are they XYXY, but declared XYWH?" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annotations"][0].update(category_id=9), "category_id=9"),
        (lambda content: content["annotations"][0].update(category_id="1"), "are integers"),
        (lambda content: content["annotations"][0].update(bbox=[]), "empty 'bbox'"),
        (lambda content: content["annotations"].append(content["annotations"][0]), "not unique"),
        (lambda content: content.pop("categories"), "categories"),
        (lambda content: content.update(categories=[]), "ValueError"),
        (lambda content: content.update(images=[]), "no images"),
        (lambda content: content["images"][0].pop("width"), "width"),
    ],
)
def test_broken_json_is_named(cfg_for, coco_catalog, change, message):
    """Detectron2's reader names the fault, but not the file."""
    path = coco_catalog("pets", [1, 2, 3])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        check_datasets(cfg_for(["pets"]))
    assert "pets.json" in str(caught.value)


def test_truncated_json_is_named(cfg_for, coco_catalog):
    path = coco_catalog("pets", [1, 2, 3])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"pets\.json .*JSONDecodeError"):
        check_datasets(cfg_for(["pets"]))


def test_annotations_are_read_all_at_once(cfg_for, catalog, one_image, make_annotation, monkeypatch):
    """COCO has 860,000: read one by one, for the message, only where something is wrong."""
    for reader in ("read_box", "read_category"):
        monkeypatch.setattr(f"detr_d2.data.checks.annotation_table.{reader}", lambda *_: pytest.fail("read one by one"))
    catalog("large", one_image(make_annotation(), make_annotation()) * 50, thing_classes=CLASSES)
    check_datasets(cfg_for(["large"]))


@pytest.mark.parametrize("address", ["https://example.com/a.png", "detectron2://a.png"])
def test_addresses_are_not_checked(cfg_for, catalog, one_image, make_annotation, address):
    records = one_image(make_annotation())
    records[0]["file_name"] = address
    catalog("remote", records, thing_classes=CLASSES, image_root="https://example.com")
    check_datasets(cfg_for(["remote"]))


@pytest.mark.parametrize(("share", "severity"), [(0, None), (0.5, "warning"), (1, "error")])
def test_objects_without_mask(make_cfg, catalog, make_image, make_annotation, caplog, share, severity):
    """Reported before training; an error where no object has a mask, since the dataset is of boxes."""
    without = [make_annotation(id=i, segmentation=[] if i % 2 else ...) for i in range(round(10 * share))]
    others = [make_annotation(id=i, segmentation=[[5, 6, 25, 6, 25, 16]]) for i in range(len(without), 10)]
    catalog("outlined", [{"file_name": make_image(), "annotations": without + others}], thing_classes=["a"])
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 1, "MODEL.DETR.NUM_OBJECT_QUERIES", 20)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("outlined",)
    message = f"{len(without)} of 10 objects have no mask"
    check_datasets(cfg)
    cfg.MODEL.MASK_ON = True
    if severity == "error":
        with pytest.raises(UserError, match=message):
            check_datasets(cfg)
        return
    with caplog.at_level(logging.WARNING):
        check_datasets(cfg)
    assert (message in caplog.text) == (severity == "warning")


def annotation(**values):
    return lambda content: content["annotations"][0].update(values)


def image(**values):
    return lambda content: content["images"][0].update(values)


HOSTILE = {
    "box as text": (
        annotation(bbox=["5", "6", "20", "10"]),
        r"'5', '6', .*annotation.*can't be read \(it holds text\)",
    ),
    "box of text": (annotation(bbox="5678"), "can't be read"),
    "iscrowd as text": (annotation(iscrowd="yes"), "'iscrowd' other than 0 and 1, e.g. 'yes'"),
    "width as text": (image(width="60"), "has height 40 and width '60': write integers"),
    "negative run": (
        annotation(segmentation={"size": [40, 60], "counts": [10, -5, 2395]}),
        "can't be loaded from .*json",
    ),
    "huge number": (annotation(bbox=[10**400, 0, 1, 1]), "can't be read"),
}


@pytest.mark.parametrize(("plant", "message"), HOSTILE.values(), ids=HOSTILE)
def test_values_of_other_types(cfg_for, coco_catalog, request, plant, message):
    """Detectron2's reader takes them without a word, or fails."""
    if np.lib.NumpyVersion(np.__version__) < "2.0.0" and "negative run" in request.node.name:
        pytest.skip("pycocotools with NumPy 1 takes negative runs; they are found when masks are read")
    path = coco_catalog("pets_train", [1, 2, 3])
    content = json.loads(path.read_text())
    plant(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        check_datasets(cfg_for(["pets_train"]), test=False)


def test_a_file_nested_too_deeply(cfg_for, coco_catalog):
    coco_catalog("pets_train", [1, 2, 3]).write_text('{"images": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"pets_train\.json .*RecursionError"):
        check_datasets(cfg_for(["pets_train"]), test=False)


def test_objects_whose_polygons_are_all_dropped_are_counted(make_cfg, catalog, make_image, make_annotation, caplog):
    """The loader's workers drop them, each for itself."""
    items = [make_annotation(segmentation=x) for x in ([[1, 2, 3, 4]], [[1, 2, 30, 4, 3, 30]])]
    record = {"file_name": make_image(), "height": 40, "width": 60, "annotations": items}
    catalog("short", [record], thing_classes=["cat"])
    cfg = make_cfg("DATASETS.TRAIN", ("short",), "MODEL.DETR.NUM_CLASSES", 1, "MODEL.MASK_ON", True)
    check_datasets(cfg, test=False)
    assert "1 of 2 objects have no mask and are dropped" in caplog.text
