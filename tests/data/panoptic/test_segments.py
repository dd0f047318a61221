"""From panoptic PNGs to things and stuff, through the mapper."""

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from detr_d2.data import DetrDatasetMapper
from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.data.panoptic.registration import load_panoptic_json
from detr_d2.utils.errors import UserError


def make_mapper(*augmentations, with_masks=True):
    return DetrDatasetMapper(is_train=True, augmentations=augmentations, with_masks=with_masks)


@pytest.fixture
def record(registered):
    return DatasetCatalog.get(registered)[0]


@pytest.fixture
def original_dataset(monkeypatch):
    """Return the original's dataset; panopticapi, whose rgb2id it needs, is not on the registry."""
    utils = types.ModuleType("panopticapi.utils")
    utils.rgb2id = lambda color: color[:, :, 0] + 256 * color[:, :, 1] + 256 * 256 * color[:, :, 2]
    monkeypatch.setitem(sys.modules, "panopticapi", types.ModuleType("panopticapi"))
    monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    yield importlib.import_module("detr.datasets.coco_panoptic").CocoPanoptic
    sys.modules.pop("detr.datasets.coco_panoptic")


@pytest.fixture
def coco_panoptic(real_data):
    folder = real_data / "coco_panoptic"
    return folder / "panoptic_examples.json", folder / "panoptic_examples", folder / "input_images"


def test_real_segments_equal_the_originals(coco_panoptic, original_dataset):
    """Masks and labels; boxes, except the last pixel, which the original leaves out; crowds, which it trains on."""
    path, maps, images = coco_panoptic
    records = load_panoptic_json(str(path), str(maps), str(images))
    original = original_dataset(images, maps, path)
    rows = coco_panoptic_categories().rows
    assert len(original) == len(records) == 2
    for record, (_, target) in zip(records, original, strict=True):
        instances = make_mapper()(record)["instances"]
        objects = target["iscrowd"] == 0
        assert not objects.all()
        assert torch.equal(instances.gt_masks.tensor, target["masks"][objects].bool())
        assert instances.gt_classes.tolist() == [rows[i] for i in target["labels"][objects].tolist()]
        assert torch.equal(instances.gt_boxes.tensor, target["boxes"][objects] + torch.tensor([0, 0, 1, 1]))
        boxes = torch.tensor([x["bbox"] for x in record["segments_info"] if not x["iscrowd"]]).float()
        assert torch.equal(instances.gt_boxes.tensor[:, 2:], boxes[:, :2] + boxes[:, 2:])


def test_detectron2s_records_work_as_ours(coco_panoptic):
    """Detectron2's coco_2017_*_panoptic are loaded by this function with these metadata."""
    path, maps, images = map(str, coco_panoptic)
    metadata = MetadataCatalog.get("coco_2017_val_panoptic").as_dict()
    for theirs, ours in zip(
        load_coco_panoptic_json(path, images, maps, metadata), load_panoptic_json(path, maps, images), strict=True
    ):
        assert theirs == {key: ours[key] for key in theirs}
        sample = make_mapper(with_masks=False)(theirs)
        assert "segments_info" not in sample
        assert sample["height"] == ours["height"]
        assert not sample["instances"].has("gt_masks")
        assert torch.equal(sample["instances"].gt_boxes.tensor, make_mapper()(ours)["instances"].gt_boxes.tensor)


def test_things_and_stuff_with_rows_boxes_and_masks(record, panoptic_files):
    ids = panoptic_files[-1]
    instances = make_mapper()(record)["instances"]
    # car, ground and sky are rows 0, 1 and 2; the crowd is left out.
    assert instances.gt_classes.tolist() == [2, 1, 0]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 60, 15], [0, 15, 60, 39], [8, 10, 31, 22]]
    for mask, i in zip(instances.gt_masks.tensor, (70000, 300, 5), strict=True):
        np.testing.assert_array_equal(mask, ids == i)


@pytest.mark.parametrize("flip", [T.HFlipTransform(60), T.VFlipTransform(40)])
def test_flips_agree(record, panoptic_files, flip):
    """Image, masks and boxes are flipped alike: the image's pixels are the ids modulo 251."""
    sample = make_mapper(flip, T.CropTransform(5, 2, 50, 36), T.ResizeTransform(36, 50, 72, 100, Image.NEAREST))(record)
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [2, 1, 0]
    for mask, box, i in zip(instances.gt_masks.tensor, instances.gt_boxes.tensor, (70000, 300, 5), strict=True):
        assert torch.equal(mask, sample["image"][0] == i % 251)
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_other_transforms_and_no_objects(record):
    sample = make_mapper(T.PadTransform(1, 2, 3, 4, orig_w=60, orig_h=40))(record)
    assert sample["instances"].gt_masks.tensor.sum(dim=(1, 2)).tolist() == [
        15 * 60 - 5 * 23,
        24 * 60 - 7 * 23 - 60,
        12 * 23,
    ]
    empty = make_mapper(T.CropTransform(0, 39, 60, 1))(record)["instances"]
    assert empty.gt_masks.tensor.shape == (0, 1, 60)


@pytest.mark.parametrize("with_masks", [True, False])
def test_objects_hidden_by_a_crop_are_removed(record, with_masks):
    """The boxes of sky and car reach into the crop, but no pixel of the sky does; with and without masks."""
    instances = make_mapper(T.CropTransform(10, 11, 15, 8), with_masks=with_masks)(record)["instances"]
    assert instances.gt_classes.tolist() == [0]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 15, 8]]


def test_annotations_come_before_segments(record, make_annotation):
    """Detectron2's *_panoptic_separated have the things as annotations."""
    instances = make_mapper(with_masks=False)(record | {"annotations": [make_annotation()]})["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[5, 6, 25, 16]]


def test_inference_reads_no_map(record):
    sample = DetrDatasetMapper(is_train=False, augmentations=[])(record | {"pan_seg_file_name": "nowhere.png"})
    assert "instances" not in sample
    assert sample["image_id"] == 1


def save_16_bits(path, ids):
    import cv2

    cv2.imwrite(str(path), np.stack([ids] * 3, axis=-1).astype(np.uint16))


BAD_MAPS = {
    "does not exist": lambda path, ids: path.unlink(),
    "can't be read": lambda path, ids: path.write_bytes(path.read_bytes()[:60]),
    "can't be read .*": lambda path, ids: path.write_text("no image"),
    "PNG of mode L, 8 bits": lambda path, ids: Image.new("L", (60, 40)).save(path),
    "PNG of mode P, 1 bits": lambda path, ids: Image.new("P", (60, 40)).save(path),
    "PNG of mode RGBA, 8 bits": lambda path, ids: Image.new("RGBA", (60, 40)).save(path),
    r"PNG of mode I\S*, 16 bits": lambda path, ids: Image.new("I;16", (60, 40)).save(path),
    "PNG of mode RGB, 16 bits": save_16_bits,
    "a JPEG of mode RGB": lambda path, ids: Image.new("RGB", (60, 40)).save(path, format="JPEG"),
    r"is 40 x 60 pixels \(width x height\), its image 60 x 40": lambda path, ids: Image.new("RGB", (40, 60)).save(path),
}


@pytest.mark.parametrize("message", BAD_MAPS)
def test_bad_maps_are_named(record, panoptic_files, message):
    BAD_MAPS[message](panoptic_files[1] / "a.png", panoptic_files[-1])
    with pytest.raises(UserError, match=rf"Panoptic map {record['pan_seg_file_name']} .*{message}"):
        make_mapper()(record)


def test_map_and_json_that_differ(record, panoptic_files, save_map):
    path, ids, segments = record["pan_seg_file_name"], panoptic_files[-1].copy(), record["segments_info"]
    cases = {
        r"does not list, of ids 6": segments[:3],
        r"no pixel of the segments 8, 9": [*segments, segments[0] | {"id": 8}, segments[0] | {"id": 9}],
        r"no pixel of the segments 0 ": [*segments, segments[0] | {"id": 0}],
        r"share ids": [*segments, segments[0]],
        r"no pixel of the segments 6": [*segments],
    }
    for message, listed in cases.items():
        if listed == segments:
            ids[ids == 6] = 0
            save_map(ids, path)
        with pytest.raises(UserError, match=message) as error:
            make_mapper()(record | {"segments_info": listed})
        assert path in str(error.value)


def test_two_workers(make_cfg, coco_panoptic):
    """As training loads them, crops and all: no pixel has two objects, and each is inside its box."""
    records = load_panoptic_json(*map(str, coco_panoptic))
    sizes = ("INPUT.MIN_SIZE_TRAIN", (60, 90), "INPUT.CROP.RESIZE_SIZES", (80,), "INPUT.CROP.SIZE", (60, 78))
    mapper = DetrDatasetMapper(make_cfg("MODEL.MASK_ON", True, *sizes), is_train=True)
    loader = build_detection_train_loader(
        records, mapper=mapper, sampler=TrainingSampler(2), total_batch_size=2, num_workers=2, seed=1
    )
    batches = iter(loader)
    for sample in (sample for _ in range(3) for sample in next(batches)):
        masks, boxes = sample["instances"].gt_masks, sample["instances"].gt_boxes.tensor
        assert len(masks) > 5
        assert masks.tensor.shape[1:] == sample["image"].shape[1:]
        assert masks.tensor.sum(dim=0).max() == 1
        assert masks.tensor.flatten(1).any(dim=1).all()
        inside = masks.get_bounding_boxes().tensor
        # Taking the nearest pixel, twice, may add one at an end each time.
        assert (inside[:, :2] > boxes[:, :2] - 3).all()
        assert (inside[:, 2:] < boxes[:, 2:] + 3).all()
