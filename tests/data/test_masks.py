"""Masks of annotations, through the mapper and alone."""

import logging
import random

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BitMasks, BoxMode
from detr.datasets import transforms as original
from detr.datasets.coco import ConvertCocoPolysToMask
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from detr_d2.data import DetrDatasetMapper
from detr_d2.data.augmentation import FastResizeTransform
from detr_d2.data.masks import read_masks
from detr_d2.utils.errors import ExampleCounter, UserError

SQUARE = [5, 6, 25, 6, 25, 16, 5, 16]
"""The box of ``make_annotation`` as a polygon."""


@pytest.fixture
def mask_mapper():
    """Return a function that makes a training mapper with masks and the given augmentations."""

    def make(*augmentations):
        return DetrDatasetMapper(is_train=True, augmentations=augmentations, with_masks=True)

    return make


@pytest.fixture
def square():
    """Return (40, 60) bool, the pixels of ``SQUARE``."""
    mask = np.zeros((40, 60), dtype=bool)
    mask[6:16, 5:25] = True
    return mask


def formats(mask: np.ndarray) -> dict:
    """Return a mask in every format except polygons."""
    compressed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    runs = mask.T.ravel()
    ends = np.flatnonzero(np.diff(runs, prepend=0, append=1 - runs[-1]) if runs[-1] else np.diff(runs, prepend=0))
    counts = np.diff(np.concatenate([[0], ends, [runs.size]])).tolist()
    return {
        "compressed, bytes": compressed,
        "compressed, text": {**compressed, "counts": compressed["counts"].decode()},
        "uncompressed": {"size": list(mask.shape), "counts": counts},
        "bitmap, bool": mask,
        "bitmap, 0 and 255": mask.astype(np.uint8) * 255,
    }


def test_every_format_in_one_image(mask_mapper, make_image, make_annotation, square):
    """Polygons, RLE and bitmaps."""
    segmentations = [[SQUARE], [np.array(SQUARE)], *formats(square).values()]
    record = {"file_name": make_image()}
    record["annotations"] = [make_annotation(segmentation=x, category_id=i) for i, x in enumerate(segmentations)]
    instances = mask_mapper()(record)["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_classes.tolist() == list(range(7))
    np.testing.assert_array_equal(instances.gt_masks.tensor, np.broadcast_to(square, (7, 40, 60)))


def test_polygons_of_one_object_are_united(mask_mapper, make_image, make_annotation):
    parts = [SQUARE, [20, 10, 40, 10, 40, 30, 20, 30], [0, 0, 3, 3]]
    record = {"file_name": make_image(), "annotations": [make_annotation(segmentation=parts)]}
    mapper = mask_mapper()
    expected = np.zeros((40, 60), dtype=bool)
    expected[6:16, 5:25] = expected[10:30, 20:40] = True
    np.testing.assert_array_equal(mapper(record)["instances"].gt_masks.tensor[0], expected)
    assert mapper.dropped.counts["a polygon of under three points"] == 1


@pytest.fixture(scope="module")
def coco(coco_paths):
    return COCO(str(coco_paths[1]))


@pytest.mark.parametrize("index", range(0, 50, 5))
def test_masks_follow_the_image_as_the_originals(mask_mapper, coco, coco_records, index):
    """Real polygons after a flip, a resize, a crop and a resize, pixel by pixel."""
    record = coco_records[0][index]
    width, height = record["width"], record["height"]
    rng = random.Random(index)
    blank = Image.new("1", (width, height))
    target = {"image_id": record["image_id"], "annotations": coco.imgToAnns[record["image_id"]]}
    image, target = ConvertCocoPolysToMask(return_masks=True)(blank, target)
    image, target = original.hflip(image, target)
    image, target = original.resize(image, target, rng.choice([400, 500, 600]))
    middle = image.size
    crop_w, crop_h = rng.randint(200, min(600, middle[0])), rng.randint(200, min(600, middle[1]))
    x, y = rng.randint(0, middle[0] - crop_w), rng.randint(0, middle[1] - crop_h)
    image, target = original.crop(image, target, (y, x, crop_h, crop_w))
    image, target = original.resize(image, target, rng.choice([330, 480, 799]), 1333)
    mapper = mask_mapper(
        T.HFlipTransform(width),
        FastResizeTransform(height, width, middle[1], middle[0]),
        T.CropTransform(x, y, crop_w, crop_h),
        T.ResizeTransform(crop_h, crop_w, image.size[1], image.size[0]),
    )
    instances = mapper(record)["instances"]
    # The original keeps an object whose box reaches into the crop while its mask does not.
    visible = target["masks"].flatten(1).any(dim=1)
    assert torch.equal(instances.gt_masks.tensor, target["masks"][visible])
    torch.testing.assert_close(instances.gt_boxes.tensor, target["boxes"][visible], rtol=0, atol=1e-3)


@pytest.mark.parametrize("flips", [[T.HFlipTransform(60)], [T.VFlipTransform(40)], [T.HFlipTransform(60)] * 2])
def test_flips_keep_masks_on_their_pixels(mask_mapper, tmp_path, make_annotation, square, flips):
    """The white pixels are the mask, whatever is done to the image; boxes enclose them."""
    Image.fromarray(square.astype(np.uint8) * 255).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [make_annotation(segmentation=[SQUARE])]}
    sample = mask_mapper(*flips, T.CropTransform(3, 4, 50, 30))(record)
    mask = sample["instances"].gt_masks.tensor[0]
    assert torch.equal(mask, sample["image"][0] > 127)
    assert torch.equal(sample["instances"].gt_masks.get_bounding_boxes().tensor, sample["instances"].gt_boxes.tensor)


def test_other_transforms_work_too(mask_mapper, make_image, make_annotation, square):
    """Transforms that do not select rows and columns are applied by Detectron2; padding is not part of an object."""
    record = {"file_name": make_image(), "annotations": [make_annotation(segmentation=[SQUARE])]}
    pad = T.PadTransform(2, 3, 4, 5, orig_w=60, orig_h=40, seg_pad_value=255)
    sample = mask_mapper(pad, T.HFlipTransform(66))(record)
    expected = np.pad(square, ((3, 5), (2, 4)))[:, ::-1]
    np.testing.assert_array_equal(sample["instances"].gt_masks.tensor[0], expected)


def test_boxes_and_masks_are_filtered_together(mask_mapper, make_image, make_annotation):
    """The crop removes the mask of one object and the box of another."""
    wide = make_annotation(bbox=[0, 0, 60, 40], segmentation=[[0, 0, 8, 0, 8, 8, 0, 8]], category_id=0)
    lying = make_annotation(bbox=[0, 0, 8, 8], segmentation=[[30, 20, 50, 20, 50, 35, 30, 35]], category_id=1)
    right = make_annotation(bbox=[30, 20, 20, 15], segmentation=[[30, 20, 50, 20, 50, 35, 30, 35]], category_id=2)
    record = {"file_name": make_image(), "annotations": [wide, lying, right]}
    instances = mask_mapper(T.CropTransform(20, 10, 40, 30))(record)["instances"]
    assert instances.gt_classes.tolist() == [2]
    assert instances.gt_boxes.tensor.tolist() == [[10, 10, 30, 25]]
    assert instances.gt_masks.tensor.shape == (1, 30, 40)
    assert instances.gt_masks.tensor.sum() == 20 * 15


@pytest.mark.parametrize("kind", ["empty", "missing", "crowd", "outside"])
def test_no_masks_have_the_images_size(mask_mapper, make_image, make_annotation, kind):
    """Images without objects, or with crowds only."""
    crowd = make_annotation(iscrowd=1, segmentation={"size": [40, 60], "counts": [2400]})
    known = {"empty": [], "missing": None, "crowd": [crowd], "outside": [make_annotation(segmentation=[SQUARE])]}
    record = {"file_name": make_image(), "annotations": known[kind]}
    instances = mask_mapper(T.CropTransform(30, 20, 22, 11))(record)["instances"]
    assert instances.gt_masks.tensor.shape == (0, 11, 22)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert len(instances) == 0


def test_objects_without_mask_are_dropped_and_counted(mask_mapper, make_image, make_annotation, caplog):
    """Also polygons of fewer than three points; a polygon outside the image has no pixel either."""
    segmentations = [..., None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[70, 1, 80, 1, 80, 9]], [SQUARE]]
    annotations = [make_annotation(segmentation=x, id=i) for i, x in enumerate(segmentations)]
    mapper = mask_mapper()
    with caplog.at_level(logging.WARNING):
        instances = mapper({"file_name": make_image(), "annotations": annotations})["instances"]
    assert len(instances) == 1
    assert mapper.dropped.counts["an object without mask, with its box"] == 6
    assert mapper.dropped.counts["a polygon of under three points"] == 2
    assert len(caplog.records) == 2
    assert "annotation id 0 of image" in caplog.text


def test_a_pixel_is_a_mask(mask_mapper, make_image, make_annotation):
    mask = np.zeros((40, 60), dtype=bool)
    mask[7, 9] = True
    record = {"file_name": make_image(), "annotations": [make_annotation(segmentation=mask)]}
    instances = mask_mapper()(record)["instances"]
    assert instances.gt_masks.tensor.nonzero().tolist() == [[0, 7, 9]]


def test_without_masks_segmentations_are_not_read(make_image, make_annotation):
    record = {"file_name": make_image(), "annotations": [make_annotation(segmentation="broken")]}
    instances = DetrDatasetMapper(is_train=True, augmentations=[])(record)["instances"]
    assert not instances.has("gt_masks")
    assert len(instances) == 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("broken", "can't be read: it must be a list of polygons"),
        (7, "can't be read"),
        (SQUARE, "can't be read"),
        ([[1, 2, "x", 4, 5, 6]], "can't be read"),
        ([[SQUARE]], "can't be read"),
        ([[float("nan"), *SQUARE[1:]]], "not finite"),
        ([[1e30, *SQUARE[1:]]], "beyond 100000 pixels"),
        ({"counts": [2400]}, "must have 'size'"),
        ({"size": [40, 60]}, "must have 'size'"),
        ({"size": [40, 60], "counts": None}, "must have 'size'"),
        ({"size": [40, 60], "counts": "\xff\xfe"}, "must have 'size'"),
        ({"size": [40, 60], "counts": ""}, "must have 'size'"),
        ({"size": [40, 60], "counts": [100, 20]}, "cover 120 pixels of 2400"),
        ({"size": [40, 60], "counts": [3000, -600]}, "cover 2400 pixels of 2400"),
        ({"size": [60, 40], "counts": [2400]}, "is 40 x 60 pixels .* its image 60 x 40"),
        (np.zeros((20, 30), dtype=bool), "is 30 x 20 pixels"),
    ],
)
def test_bad_masks_are_named(segmentation, message):
    """An RLE of another size than the image, or cut off, which pycocotools would fill with uninitialized memory."""
    with pytest.raises(UserError, match=rf"annotation id 9 of image a\.jpg.*{message}"):
        read_masks([{"segmentation": segmentation}], ["annotation id 9 of image a.jpg"], (40, 60), ExampleCounter())


def test_cut_off_rle_is_named():
    generator = np.random.default_rng(0)
    rle = coco_mask.encode(np.asfortranarray(generator.integers(0, 2, (40, 60), dtype=np.uint8)))
    for end in (1, 5, len(rle["counts"]) - 1):
        cut_off = {"segmentation": {**rle, "counts": rle["counts"][:end]}}
        with pytest.raises(UserError, match="annotation 1"):
            read_masks([cut_off], ["annotation 1"], (40, 60), ExampleCounter())


def test_random_compressed_rles_are_accepted():
    """Long and short runs of all lengths: the check of their sum agrees with pycocotools' code."""
    generator = np.random.default_rng(1)
    for share in (0.5, 0.99, 0.9999, 0, 1):
        mask = generator.random((300, 700)) > share
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        kept, masks = read_masks([{"segmentation": rle}], ["a"], (300, 700), ExampleCounter())
        assert len(kept) == mask.any()
        if mask.any():
            np.testing.assert_array_equal(masks.rasterize(np.array([0]), T.TransformList([]))[0], mask)


def test_two_workers_return_masks(make_cfg, make_annotation, tmp_path):
    """As training loads them: each mask is where its object is."""
    image = Image.new("RGB", (80, 60))
    ImageDraw.Draw(image).rectangle((10, 20, 39, 49), fill=(255, 255, 255))
    image.save(tmp_path / "a.png")
    segmentation = [[10, 20, 40, 20, 40, 50, 10, 50]]
    annotation = make_annotation(bbox=[10, 20, 40, 50], bbox_mode=BoxMode.XYXY_ABS, segmentation=segmentation)
    records = [{"file_name": str(tmp_path / "a.png"), "height": 60, "width": 80, "annotations": [annotation]}]
    sizes = ("INPUT.MIN_SIZE_TRAIN", (60, 90, 120), "INPUT.CROP.RESIZE_SIZES", (80,), "INPUT.CROP.SIZE", (60, 78))
    mapper = DetrDatasetMapper(make_cfg("MODEL.MASK_ON", True, *sizes), is_train=True)
    loader = build_detection_train_loader(
        records, mapper=mapper, sampler=TrainingSampler(1), total_batch_size=2, num_workers=2, seed=1
    )
    batches = iter(loader)
    for sample in (sample for _ in range(4) for sample in next(batches)):
        white = sample["image"][0] > 127
        assert sample["instances"].gt_masks.tensor.shape[1:] == sample["image"].shape[1:]
        overlap = (sample["instances"].gt_masks.tensor[0] & white).sum() / white.sum()
        assert overlap > 0.95
