"""Mosaics and pasted objects, on images whose pixels tell where they come from."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image
from torch.testing import assert_close

from detr_d2.data import check_datasets
from detr_d2.data.mixing import MixingMapper, build_training_mapper, make_mosaic, paste_objects
from detr_d2.utils.errors import UserError


def make_sample(gray, size, *boxes, masks=True):
    """Return an image of one gray level with rectangular objects of class ``gray``, XYXY."""
    instances = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    instances.gt_classes = torch.full((len(boxes),), gray)
    if masks:
        tensor = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(tensor, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(tensor)
    image = torch.full((3, *size), gray, dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": f"{gray}.jpg"}


def boxes_of_masks(instances):
    return instances.gt_masks.get_bounding_boxes().tensor


@pytest.mark.parametrize("masks", [True, False])
def test_mosaic(masks):
    """By hand: four images that meet at x = 30, y = 20."""
    samples = [
        make_sample(1, (40, 60), (4, 8, 24, 28), masks=masks),
        make_sample(2, (20, 40), masks=masks),
        make_sample(3, (20, 20), (0, 0, 20, 20), masks=masks),
        make_sample(4, (60, 80), (60, 40, 80, 60), masks=masks),
    ]
    found = make_mosaic(samples)
    assert found["file_name"] == "1.jpg"
    image, instances = found["image"], found["instances"]
    assert image.shape == (3, 20 + 30, 30 + 40)
    expected = torch.full((50, 70), 114, dtype=torch.uint8)
    expected[:20, :30] = 1
    expected[10:20, 30:50] = 2
    expected[20:30, 20:30] = 3
    expected[20:, 30:] = 4
    assert torch.equal(image[0], expected)
    assert instances.image_size == (50, 70)
    assert instances.gt_classes.tolist() == [1, 3, 4]
    boxes = torch.tensor([[2.0, 4, 12, 14], [20, 20, 30, 30], [60, 40, 70, 50]])
    assert_close(instances.gt_boxes.tensor, boxes)
    assert instances.has("gt_masks") == masks
    if masks:
        assert_close(boxes_of_masks(instances), boxes)


@pytest.fixture
def paste_all(monkeypatch):
    monkeypatch.setattr("detr_d2.data.mixing._PASTED_SHARE", 1.0)


@pytest.mark.usefixtures("paste_all")
def test_pasted_objects():
    sample = make_sample(1, (30, 40), (0, 0, 10, 10), (5, 5, 25, 15), (30, 20, 40, 30))
    # One hides half of the first and a part of the second; one lies outside, beyond the smaller image; one covers the
    # last.
    other = make_sample(2, (60, 50), (5, 0, 10, 10), (42, 40, 48, 50), (28, 18, 45, 35))
    before = sample["image"].clone()
    found = paste_objects(sample, other)
    image, instances = found["image"], found["instances"]
    assert torch.equal(sample["image"], before)
    assert instances.gt_classes.tolist() == [1, 1, 2, 2]
    # The box of the second keeps its extent but for the corner that is hidden.
    expected = torch.tensor([[0.0, 0, 5, 10], [5, 5, 25, 15], [5, 0, 10, 10], [28, 18, 40, 30]])
    assert_close(instances.gt_boxes.tensor, expected)
    assert_close(boxes_of_masks(instances), expected)
    visible = instances.gt_masks.tensor
    assert not (visible[:2].any(0) & visible[2:].any(0)).any()
    assert visible[1].sum() == 20 * 10 - 5 * 5
    assert torch.equal(image[0] == 2, visible[2:].any(0))
    assert (image[0][~visible[2:].any(0)] == 1).all()


@pytest.mark.usefixtures("paste_all")
def test_pasting_without_objects():
    sample, empty = make_sample(1, (30, 40), (0, 0, 10, 10)), make_sample(2, (20, 20))
    for found in (paste_objects(sample, empty), paste_objects(empty, make_sample(3, (9, 9)))):
        assert len(found["instances"]) in (0, 1)
    assert torch.equal(paste_objects(sample, empty)["image"], sample["image"])


def test_probabilities():
    records = [{"gray": i} for i in range(4)]
    mapper = MixingMapper(lambda x: make_sample(x["gray"], (8, 8)), records, mosaic=0.25)
    np.random.seed(0)
    mixed = [mapper(records[0])["image"].shape[1] for _ in range(400)]
    # The same size: four images at half of it.
    assert mixed == [8] * 400
    np.random.seed(0)
    share = np.mean([mapper(records[0])["image"].unique().numel() > 1 for _ in range(400)])
    # Three others are all the first itself in one of 64 mosaics.
    assert share == pytest.approx(0.25 * 63 / 64, abs=0.06)


def test_built_from_a_config(make_cfg):
    assert not isinstance(build_training_mapper(make_cfg(), []), MixingMapper)
    mapper = build_training_mapper(make_cfg("INPUT.MOSAIC", 0.5, "INPUT.COPY_PASTE", 0.25, "MODEL.MASK_ON", True), [{}])
    assert (mapper.mosaic, mapper.copy_paste, mapper.records) == (0.5, 0.25, [{}])
    assert (mapper.keep_masks, mapper.mapper.with_masks) == (True, True)
    with pytest.raises(UserError, match=r"INPUT\.MOSAIC is 2\.0: set a probability from 0 to 1\."):
        build_training_mapper(make_cfg("INPUT.MOSAIC", 2.0), [])


def test_the_background_of_a_mosaic_has_a_value_per_band():
    """The lower right image is smaller than its quarter of the mosaic."""
    samples = [make_sample(9, (8, 8)) for _ in range(3)] + [make_sample(9, (4, 4))]
    found = make_mosaic(samples, (1.0, 2.0, 3.0))["image"]
    assert found[:, -1, -1].tolist() == [1, 2, 3]


@pytest.mark.usefixtures("paste_all")
def test_a_model_of_boxes_pastes_objects_along_their_masks(make_cfg, tmp_path):
    """A triangle is pasted over an object that fills an image."""
    records = []
    for gray, annotation in (
        (10, {"bbox": [0, 0, 40, 30], "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]]}),
        (200, {"bbox": [2, 2, 12, 12], "segmentation": [[2, 2, 14, 2, 2, 14]]}),
    ):
        file = tmp_path / f"{gray}.png"
        Image.new("RGB", (40, 30), (gray,) * 3).save(file)
        common = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": len(records)}
        objects = [{**common, **annotation}]
        records.append({"file_name": str(file), "width": 40, "height": 30, "annotations": objects})
    options = ("INPUT.COPY_PASTE", 1.0, "INPUT.MIN_SIZE_TRAIN", (30,), "INPUT.CROP.ENABLED", False)
    mapper = build_training_mapper(
        make_cfg(*options, "INPUT.AUGMENTATION", "detr", "INPUT.RANDOM_FLIP", "none"), records[1:]
    )
    plain = mapper.unmixed()(records[0])
    assert_close(plain["instances"].gt_boxes.tensor, torch.tensor([[0.0, 0, 40, 30]]))
    assert not plain["instances"].has("gt_masks")
    assert plain["image"].unique().tolist() == [10]
    sample = mapper(records[0])
    instances = sample["instances"]
    assert not instances.has("gt_masks")
    assert_close(instances.gt_boxes.tensor, torch.tensor([[0.0, 0, 40, 30], [2, 2, 14, 14]]))
    assert instances.gt_classes.tolist() == [0, 1]
    pasted = sample["image"][0] == 200
    assert pasted[2:14, 2:14].float().mean() == pytest.approx(0.5, abs=0.1)
    assert pasted.sum() == pasted[2:14, 2:14].sum()


def test_copy_paste_needs_masks_in_the_annotations(make_cfg, catalog):
    annotation = {"bbox": [0, 0, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    catalog("boxes", [{"file_name": __file__, "width": 40, "height": 30, "image_id": 1, "annotations": [annotation]}])
    cfg = make_cfg("DATASETS.TRAIN", ("boxes",), "DATASETS.TEST", (), "MODEL.DETR.NUM_CLASSES", 1)
    check_datasets(cfg, test=False)
    cfg.INPUT.COPY_PASTE = 0.5
    with pytest.raises(UserError, match=r"1 of 1 objects have no mask .* INPUT\.COPY_PASTE 0 to train on boxes"):
        check_datasets(cfg, test=False)
