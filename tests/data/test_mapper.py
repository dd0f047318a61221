"""The mapper, alone and under Detectron2's loaders."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detr.datasets.coco import CocoDetection
from PIL import Image

from detr_d2.data import DetrDatasetMapper
from detr_d2.utils.errors import UserError


@pytest.fixture
def plain_mapper():
    """Return a training mapper without augmentation, built without a cfg."""
    return DetrDatasetMapper(is_train=True, augmentations=[])


def test_real_targets_equal_the_originals(plain_mapper, coco_paths, coco_records):
    """Every real training image: polygons, crowds, an image without objects."""
    records, contiguous = coco_records
    oracle = CocoDetection(*map(str, coco_paths), transforms=None, return_masks=False)
    assert len(oracle) == len(records) == 50
    counts = set()
    for record, (image, target) in zip(records, oracle, strict=True):
        assert record["image_id"] == target["image_id"].item()
        sample = plain_mapper(record)
        instances = sample["instances"]
        assert torch.equal(instances.gt_boxes.tensor, target["boxes"])
        assert instances.gt_classes.tolist() == [contiguous[label] for label in target["labels"].tolist()]
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), np.asarray(image))
        counts.add(len(instances))
    assert 0 in counts
    assert max(counts) > 20


@pytest.mark.parametrize("is_train", [True, False])
def test_record_is_unchanged(make_cfg, coco_records, is_train):
    record = coco_records[0][0]
    before = copy.deepcopy(record)
    sample = DetrDatasetMapper(make_cfg(), is_train)(record)
    assert record == before
    assert "annotations" not in sample
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape[0] == 3
    for key in ("file_name", "image_id", "height", "width"):
        assert sample[key] == record[key]
    assert ("instances" in sample) == is_train
    if is_train:
        assert sample["instances"].image_size == tuple(sample["image"].shape[1:])


def test_inference_resizes_to_800(make_cfg, make_image):
    sample = DetrDatasetMapper(make_cfg(), is_train=False)({"file_name": make_image(60, 40)})
    assert sample["image"].shape == (3, 800, 1200)
    assert (sample["height"], sample["width"]) == (40, 60)


def test_annotations_are_not_copied(plain_mapper, make_image, make_annotation):
    """A record may hold large masks, which boxes do not need."""

    class Untouchable:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        __copy__ = __deepcopy__

    annotation = make_annotation(segmentation=Untouchable())
    sample = plain_mapper({"file_name": make_image(), "annotations": [annotation]})
    assert sample["instances"].gt_boxes.tensor.tolist() == [[5, 6, 25, 16]]


@pytest.mark.parametrize("record", [{}, {"annotations": []}, {"annotations": None}])
def test_nothing_annotated(make_cfg, make_image, record):
    """Empty or missing annotations give empty targets."""
    sample = DetrDatasetMapper(make_cfg(), is_train=True)({"file_name": make_image(), **record})
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_boxes.tensor.dtype == torch.float32
    assert sample["instances"].gt_classes.dtype == torch.int64
    assert len(sample["instances"]) == 0


def test_crop_that_removes_every_box(make_image, make_annotation):
    """The image is a valid negative."""
    mapper = DetrDatasetMapper(is_train=True, augmentations=[T.CropTransform(30, 20, 20, 15)])
    sample = mapper({"file_name": make_image(), "annotations": [make_annotation()]})
    assert sample["image"].shape == (3, 15, 20)
    assert len(sample["instances"]) == 0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30, 3000)])
def test_extreme_sizes(make_cfg, make_image, make_annotation, width, height):
    mapper = DetrDatasetMapper(make_cfg("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.RESIZE_SIZES", (40,)), True)
    record = {"file_name": make_image(width, height)}
    record["annotations"] = [make_annotation(bbox=[0, 0, width, height])]
    np.random.seed(0)
    for _ in range(6):
        sample = mapper(record)
        assert sample["instances"].image_size == tuple(sample["image"].shape[1:])
        assert len(sample["instances"]) == 1


def test_flip_keeps_boxes_on_their_pixels(make_cfg, tmp_path, make_annotation):
    """The one white rectangle is where the box is, whatever flip and crop are sampled."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[6:16, 5:25] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [make_annotation()]}
    sizes = ("INPUT.MIN_SIZE_TRAIN", (80, 120), "INPUT.CROP.RESIZE_SIZES", (160,), "INPUT.CROP.SIZE", (100, 150))
    mapper = DetrDatasetMapper(make_cfg(*sizes), is_train=True)
    np.random.seed(0)
    found = 0
    for _ in range(30):
        sample = mapper(record)
        rows, columns = np.nonzero(sample["image"][0].numpy() > 127)
        if len(sample["instances"]):
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(sample["instances"].gt_boxes.tensor[0], expected, atol=1)
            found += 1
    assert found > 20


def test_format_is_the_configs(make_cfg, tmp_path):
    """RGB or BGR, as the backbone expects it."""
    path = str(tmp_path / "red.png")
    Image.new("RGB", (10, 10), (255, 0, 0)).save(path)
    red, blue = (
        DetrDatasetMapper(make_cfg("INPUT.FORMAT", name), is_train=False)({"file_name": path})["image"][:, 0, 0]
        for name in ("RGB", "BGR")
    )
    assert red.tolist() == [255, 0, 0]
    assert blue.tolist() == [0, 0, 255]
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is 'HSV'"):
        DetrDatasetMapper(make_cfg("INPUT.FORMAT", "HSV"), is_train=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda mapper: pickle.loads(pickle.dumps(mapper))])
def test_copies_do_the_same(make_cfg, coco_records, duplicate):
    """Through deepcopy and pickle."""
    mapper = DetrDatasetMapper(make_cfg(), is_train=True)
    samples = []
    for each in (mapper, duplicate(mapper)):
        np.random.seed(3)
        samples.append(each(coco_records[0][1]))
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert torch.equal(samples[0]["instances"].gt_boxes.tensor, samples[1]["instances"].gt_boxes.tensor)


def sample_sizes(records, mapper, seed):
    """Return the augmented sizes in the batches of two workers, which alternate."""
    loader = build_detection_train_loader(
        records,
        mapper=mapper,
        sampler=TrainingSampler(len(records), shuffle=False),
        total_batch_size=3,
        aspect_ratio_grouping=False,
        num_workers=2,
        seed=seed,
    )
    batches = iter(loader)
    return [[tuple(sample["image"].shape[1:]) for sample in next(batches)] for _ in range(4)]


def test_workers_differ_and_the_run_repeats(make_cfg, make_image, make_annotation):
    """Workers sample different augmentations; the same seed repeats the run."""
    record = {"file_name": make_image(200, 160), "annotations": [make_annotation()], "height": 160, "width": 200}
    sizes = ("INPUT.MIN_SIZE_TRAIN", tuple(range(40, 120)), "INPUT.CROP.RESIZE_SIZES", (100, 110))
    mapper = DetrDatasetMapper(make_cfg(*sizes, "INPUT.CROP.SIZE", (50, 90)), is_train=True)
    first = sample_sizes([record] * 6, mapper, seed=11)
    assert first[0] != first[1], "two workers sampled the same"
    assert first == sample_sizes([record] * 6, mapper, seed=11)
    assert first != sample_sizes([record] * 6, mapper, seed=12)


def test_error_in_a_worker_keeps_its_type(make_cfg, tmp_path):
    """Through the loader it is still a UserError with the path."""
    records = [{"file_name": str(tmp_path / "gone.jpg"), "height": 4, "width": 4, "annotations": []}] * 2
    loader = build_detection_test_loader(records, mapper=DetrDatasetMapper(make_cfg(), is_train=False), num_workers=1)
    with pytest.raises(UserError, match=r"gone\.jpg does not exist"):
        next(iter(loader))
