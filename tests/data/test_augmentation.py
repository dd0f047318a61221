"""The augmentation against the original's ``detr.datasets.transforms``."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detr.datasets import transforms as original
from detr.datasets.coco import make_coco_transforms
from PIL import Image
from scipy.stats import ks_2samp

from detr_d2.data.annotations import build_instances
from detr_d2.data.augmentation import (
    AUGMENTATIONS,
    BandContrast,
    DetrResizeShortestEdge,
    FastResizeTransform,
    build_augmentation,
)
from detr_d2.utils.errors import UserError

SAMPLES = 5000


class SizeOnlyInput:
    """Replacement of an image of which only the size matters; records the transforms, each with the size before."""

    def __init__(self, height, width):
        self.steps = []
        self._set_size(height, width)

    def _set_size(self, height, width):
        self.image = np.broadcast_to(np.uint8(0), (height, width, 3))

    def transform(self, tfm):
        self.steps.append((tfm, self.image.shape[:2]))
        if isinstance(tfm, T.ResizeTransform):
            self._set_size(tfm.new_h, tfm.new_w)
        elif isinstance(tfm, T.CropTransform):
            self._set_size(tfm.h, tfm.w)

    def of_type(self, kind):
        return [step for step in self.steps if isinstance(step[0], kind)]


@pytest.fixture
def original_sizes(monkeypatch):
    """Make the original compute sizes without pixels; return the list of its crops."""
    crops = []

    def crop(image, target, region):
        crops.append((image.size, region))
        return Image.new("1", (region[3], region[2])), target

    def resize(image, size):
        return Image.new("1", (size[1], size[0]))

    monkeypatch.setattr(original, "F", SimpleNamespace(resize=resize))
    monkeypatch.setattr(original, "crop", crop)
    monkeypatch.setattr(original, "hflip", lambda image, target: (image, {**target, "flipped": True}))
    return crops


def sample_ours(augmentation, height, width):
    """Return columns: flipped; crop's height, width, vertical and horizontal place in [0, 1]; final height, width."""
    rows = []
    for _ in range(SAMPLES):
        item = SizeOnlyInput(height, width)
        augmentation(item)
        crops = [((w, h), (tfm.y0, tfm.x0, tfm.h, tfm.w)) for tfm, (h, w) in item.of_type(T.CropTransform)]
        flipped = bool(item.of_type(T.HFlipTransform))
        rows.append((flipped, *describe_crop(crops), *item.image.shape[:2]))
    return np.array(rows, dtype=float)


def sample_original(crops, height, width):
    augmentation = make_coco_transforms("train").transforms[:-1]
    rows = []
    for _ in range(SAMPLES):
        crops.clear()
        image, target = Image.new("1", (width, height)), {}
        for step in augmentation:
            image, target = step(image, target)
        rows.append(("flipped" in target, *describe_crop(crops), image.height, image.width))
    return np.array(rows, dtype=float)


def describe_crop(crops):
    if not crops:
        return (np.nan,) * 4
    [((width, height), (top, left, h, w))] = crops
    # A crop of the full side has only one position.
    return h, w, top / (height - h) if height > h else np.nan, left / (width - w) if width > w else np.nan


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427)])
def test_samples_follow_the_original(make_cfg, original_sizes, height, width):
    """5,000 samples have the original's distribution."""
    np.random.seed(1)
    random.seed(2)
    torch.manual_seed(3)
    ours = sample_ours(T.AugmentationList(build_augmentation(make_cfg(), is_train=True)), height, width)
    theirs = sample_original(original_sizes, height, width)

    for rows in (ours, theirs):
        cropped = ~np.isnan(rows[:, 1])
        assert rows[:, 0].mean() == pytest.approx(0.5, abs=0.02), "flips"
        assert cropped.mean() == pytest.approx(0.5, abs=0.02), "crops"
        sides = rows[cropped, 1:3]
        assert sides.min() == 384
        assert sides.max() == 600
        assert np.nanmin(rows[:, 3:5]) == 0
        assert np.nanmax(rows[:, 3:5]) == 1
        # Flips and crops are sampled independently: a quarter of the images has both.
        assert (cropped & (rows[:, 0] == 1)).mean() == pytest.approx(0.25, abs=0.02)
    for column in range(1, 7):
        a, b = (rows[~np.isnan(rows[:, column]), column] for rows in (ours, theirs))
        assert ks_2samp(a, b).pvalue > 0.01, f"column {column}"
    # The relation of the two sides: without a crop the same sizes are reached.
    uncropped = [{tuple(row[5:]) for row in rows if np.isnan(row[1])} for rows in (ours, theirs)]
    assert uncropped[0] == uncropped[1]
    assert len(uncropped[0]) == 11


@pytest.mark.parametrize("max_size", [None, 1333])
def test_resized_size_is_the_originals(original_sizes, max_size):
    """Truncated, not rounded; and reduced by the original's rule where the longest edge is too long."""
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(20, 1500, (2000, 2)), (480, 640), (640, 480), (500, 500), (30, 3000), (3000, 30)]
    differs_from_detectron2 = 0
    for height, width in np.array(sizes).tolist():
        for size in (400, 480, 800):
            expected, _ = original.resize(Image.new("1", (width, height)), None, size, max_size)
            item = SizeOnlyInput(height, width)
            DetrResizeShortestEdge([size], max_size or 10**9, "choice")(item)
            assert item.image.shape[:2] == (expected.height, expected.width), (height, width, size)
            rounded = T.ResizeShortestEdge.get_output_shape(height, width, size, max_size or 10**9)
            differs_from_detectron2 += rounded != item.image.shape[:2]
    assert differs_from_detectron2 > 1000


def test_inference_size_is_the_originals(make_cfg, original_sizes):
    resize = make_coco_transforms("val").transforms[0]
    (ours,) = build_augmentation(make_cfg(), is_train=False)
    for height, width in [(427, 640), (640, 427), (300, 1200), (800, 1333), (50, 51)]:
        expected, _ = resize(Image.new("1", (width, height)), None)
        item = SizeOnlyInput(height, width)
        ours(item)
        assert item.image.shape[:2] == (expected.height, expected.width)


def test_no_resize_in_inference(make_cfg):
    """MIN_SIZE_TEST 0 leaves images unchanged, as in Detectron2."""
    item = SizeOnlyInput(123, 456)
    T.AugmentationList(build_augmentation(make_cfg("INPUT.MIN_SIZE_TEST", 0), is_train=False))(item)
    assert item.image.shape[:2] == (123, 456)


def assert_levels_agree(image, expected, levels, share):
    """Assert that gray levels differ by ``levels`` at most, and in no more than a share of the values."""
    assert image.shape == expected.shape
    assert image.dtype == expected.dtype == np.uint8
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 3000), (48, 64)])
@pytest.mark.parametrize("size", [(13, 80), (80, 106), (48, 64), (1, 133)])
def test_fast_resize_gives_pillows_pixels(height, width, size):
    """For any shape, number of channels and reversed axes; noise is the hardest case for rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    read_only = noise.copy()
    read_only.flags.writeable = False
    views = [noise, noise[:, :, :1], noise[:, ::-1], noise[::-1], noise[::-1, ::-1, ::-1], read_only]
    for view in views:
        expected = T.ResizeTransform(height, width, *size).apply_image(view)
        image = FastResizeTransform(height, width, *size).apply_image(view)
        assert_levels_agree(image, expected, 1, 0.25)


def test_fast_resize_leaves_the_rest_to_detectron2():
    """Masks and float images, and any other filter."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    plain, fast = (kind(20, 30, 33, 44) for kind in (T.ResizeTransform, FastResizeTransform))
    mask = (image[:, :, 0] > 127).astype(np.uint8)
    np.testing.assert_array_equal(fast.apply_segmentation(mask), plain.apply_segmentation(mask))
    np.testing.assert_array_equal(fast.apply_image(image, Image.BICUBIC), plain.apply_image(image, Image.BICUBIC))
    np.testing.assert_array_equal(fast.apply_image(image / 255.0), plain.apply_image(image / 255.0))
    np.testing.assert_array_equal(fast.apply_box(np.array([1, 2, 3, 4.0])), plain.apply_box(np.array([1, 2, 3, 4.0])))


def test_fast_resize_samples_the_same(make_cfg):
    """The key changes the pixels, but not the geometry."""
    sampled = []
    for fast in (True, False):
        np.random.seed(0)
        item = SizeOnlyInput(480, 640)
        augmentation = build_augmentation(make_cfg("INPUT.FAST_RESIZE_TRAIN", fast), is_train=True)
        for _ in range(50):
            T.AugmentationList(augmentation)(item)
            item._set_size(480, 640)
        sampled.append(
            [[getattr(tfm, x, None) for x in ("new_h", "new_w", "x0", "y0", "w", "h")] for tfm, _ in item.steps]
        )
    assert sampled[0] == sampled[1]
    (exact,) = build_augmentation(make_cfg(), is_train=False)
    (fast,) = build_augmentation(make_cfg("INPUT.FAST_RESIZE_TEST", True), is_train=False)
    kinds = [type(x.get_transform(np.zeros((480, 640, 3), dtype=np.uint8))) for x in (exact, fast)]
    assert kinds == [T.ResizeTransform, FastResizeTransform]


def replay(transforms, image, boxes):
    """Apply Detectron2 transforms with the original's functions."""
    count = len(boxes)
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.arange(count)}
    target |= {"area": torch.zeros(count), "iscrowd": torch.zeros(count)}
    for tfm in transforms:
        if isinstance(tfm, T.HFlipTransform):
            image, target = original.hflip(image, target)
        elif isinstance(tfm, T.ResizeTransform):
            image, target = original.resize(image, target, (tfm.new_w, tfm.new_h))
        elif isinstance(tfm, T.CropTransform):
            image, target = original.crop(image, target, (tfm.y0, tfm.x0, tfm.h, tfm.w))
        else:
            assert isinstance(tfm, T.NoOpTransform)
    return np.asarray(image), target


def flatten(tfm):
    return [step for part in tfm.transforms for step in flatten(part)] if isinstance(tfm, T.TransformList) else [tfm]


@pytest.mark.parametrize("fast", [False, True])
def test_pixels_and_boxes_equal_the_originals(make_cfg, coco_paths, coco_records, fast):
    """The original applies the same flips, resizes and crops to real images; a crop may remove every box."""
    records = [record for record in coco_records[0] if len(record["annotations"]) > 3]
    augmentation = T.AugmentationList(build_augmentation(make_cfg("INPUT.FAST_RESIZE_TRAIN", fast), is_train=True))
    np.random.seed(0)
    seen, lost = set(), 0
    for record in records[:24]:
        image = Image.open(record["file_name"]).convert("RGB")
        boxes = np.array([item["bbox"] for item in record["annotations"]], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        item = T.AugInput(np.asarray(image), boxes=boxes)
        steps = flatten(augmentation(item))
        pixels, target = replay(steps, image, boxes)
        instances = build_instances(item.boxes, np.arange(len(boxes)), item.image.shape[:2])

        assert_levels_agree(item.image, pixels, *((2, 0.02) if fast else (0, 0)))
        np.testing.assert_array_equal(instances.gt_classes, target["labels"])
        np.testing.assert_allclose(instances.gt_boxes.tensor, target["boxes"], atol=1e-3, rtol=0)
        seen |= {type(step) for step in steps}
        lost += len(boxes) - len(instances)
    assert seen >= {T.HFlipTransform, FastResizeTransform if fast else T.ResizeTransform, T.CropTransform}
    assert lost > 0, "no crop removed a box: the test covers less than it should"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 3000), (3000, 30), (7, 500), (399, 1200)])
@pytest.mark.parametrize("resize_sizes", [(400, 500, 600), ()])
def test_small_and_long_images_pass(make_cfg, height, width, resize_sizes):
    """1 x 1 and 30 x 3000 pixels, and sides shorter than the smallest crop."""
    cfg = make_cfg("INPUT.CROP.RESIZE_SIZES", resize_sizes, "INPUT.MAX_SIZE_TRAIN", 1333)
    augmentation = T.AugmentationList(build_augmentation(cfg, is_train=True))
    np.random.seed(0)
    cropped = 0
    for _ in range(40):
        item = SizeOnlyInput(height, width)
        augmentation(item)
        cropped += len(item.of_type(T.CropTransform))
        assert min(item.image.shape[:2]) >= 1
        # The original's rounding can overshoot by half a pixel of the shortest side, scaled up.
        assert max(item.image.shape[:2]) <= 1333 * 1.05
    assert cropped > 5


def test_image_too_long_for_the_largest_side():
    """Where the original computes a side of 0 pixels and fails, one pixel is left."""
    assert DetrResizeShortestEdge.get_output_shape(1, 10000, 800, 1333) == (1, 1333)
    assert DetrResizeShortestEdge.get_output_shape(10000, 1, 800, 1333) == (1333, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("INPUT.CROP.TYPE", "square"), "INPUT.CROP.TYPE is 'square'"),
        (("INPUT.CROP.SIZE", (384, 600, 2)), "INPUT.CROP.SIZE is .* two numbers"),
        (("INPUT.CROP.SIZE", (0.9, 0.9)), "INPUT.CROP.SIZE is .* integers"),
        (("INPUT.CROP.SIZE", (600, 384)), "smallest side first"),
        (("INPUT.CROP.TYPE", "relative_range"), r"lie in \(0, 1\]"),
        (("INPUT.CROP.RESIZE_SIZES", (0, 400)), "INPUT.CROP.RESIZE_SIZES is"),
        (("INPUT.RANDOM_FLIP", "both"), "INPUT.RANDOM_FLIP is 'both'"),
        (("INPUT.MIN_SIZE_TRAIN", ()), "INPUT.MIN_SIZE_TRAIN is"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"), "INPUT.MIN_SIZE_TRAIN is .* two lengths"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all"), "INPUT.MIN_SIZE_TRAIN_SAMPLING is 'all'"),
        (("INPUT.AUGMENTATION", "much"), "INPUT.AUGMENTATION is 'much': choose one of detr, light, lsj"),
        (("INPUT.COLOR_JITTER", 1.0), "INPUT.COLOR_JITTER is 1.0: set a share"),
    ],
)
def test_wrong_keys_are_named(make_cfg, options, message):
    with pytest.raises(UserError, match=message):
        build_augmentation(make_cfg(*options), is_train=True)


def test_keys_have_their_effect(make_cfg):
    def kinds(*options):
        augmentation = T.AugmentationList(build_augmentation(make_cfg(*options), is_train=True))
        sizes = set()
        for _ in range(60):
            item = SizeOnlyInput(100, 200)
            augmentation(item)
            sizes |= {type(tfm).__name__ for tfm, _ in item.steps} | {min(item.image.shape[:2])}
        return sizes - {"NoOpTransform", "FastResizeTransform"}

    plain = ("INPUT.CROP.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", (50, 60))
    assert kinds(*plain) == {"HFlipTransform", 50, 60}
    assert kinds(*plain, "INPUT.RANDOM_FLIP", "vertical") == {"VFlipTransform", 50, 60}
    assert kinds(*plain, "INPUT.RANDOM_FLIP", "none") == {50, 60}
    in_range = kinds(*plain, "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    assert min(in_range) >= 50
    assert max(in_range) <= 60
    assert len(in_range) > 5
    relative = ("INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", (0.5, 0.5), "INPUT.MIN_SIZE_TRAIN", (50,))
    assert kinds(*relative) == {"HFlipTransform", "CropTransform", 50}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_follow_their_pixels(make_cfg, name):
    """A bright rectangle stays in its box, or leaves the image with it."""
    np.random.seed(0)
    cfg = make_cfg("INPUT.AUGMENTATION", name, "INPUT.MIN_SIZE_TRAIN", (64, 96), "INPUT.CROP.RESIZE_SIZES", (80, 120))
    cfg.merge_from_list(["INPUT.CROP.SIZE", (50, 80), "INPUT.COLOR_JITTER", 0.1])
    augmentations = T.AugmentationList(build_augmentation(cfg, is_train=True))
    for _ in range(50):
        image = np.zeros((120, 180, 3), dtype=np.uint8)
        image[40:90, 60:140] = 255
        mask = image[..., 0] > 0
        data = T.AugInput(image, boxes=np.array([[60.0, 40.0, 140.0, 90.0]]), sem_seg=mask.astype(np.uint8))
        augmentations(data)
        height, width = data.image.shape[:2]
        x0, y0, x1, y1 = data.boxes[0].clip(0, [width, height, width, height])
        bright = data.image[..., 0] > 160
        inside = np.zeros_like(bright)
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
        edges = 2 * (height + width)
        assert (bright != inside).sum() <= edges
        assert (data.sem_seg.astype(bool) != inside).sum() <= edges
        assert set(np.unique(data.sem_seg)) <= {0, 1}


def test_color_jitter(make_cfg):
    """It changes colors, not shapes, by factors in its range."""
    cfg = make_cfg("INPUT.COLOR_JITTER", 0.2, "INPUT.CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none")
    augmentations = build_augmentation(cfg, is_train=True)[1:]
    kinds = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
    assert [type(x) for x in augmentations] == list(kinds)
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    values = [int(augmentations[0].get_transform(image).apply_image(image)[0, 0, 0]) for _ in range(200)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120


def test_lsj_gives_one_size(make_cfg):
    augmentations = build_augmentation(make_cfg("INPUT.AUGMENTATION", "lsj"), is_train=True)
    for size in ((480, 640), (100, 50)):
        data = T.AugInput(np.zeros((*size, 3), dtype=np.uint8))
        T.AugmentationList(augmentations)(data)
        assert data.image.shape == (800, 800, 3)


GRAY = ("INPUT.CHANNELS", 1, "MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [50.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("bands", [1, 4, 6])
def test_bands_are_resized_one_by_one(make_cfg, bands, dtype):
    """As Pillow resizes each alone, though it takes a fourth band of 8 bits for alpha, by which it multiplies."""
    image = np.random.default_rng(0).random((40, 60, bands)) * (255 if dtype == np.uint8 else 65535)
    image = image.astype(dtype)
    (resize,) = build_augmentation(make_cfg(*GRAY, "INPUT.MIN_SIZE_TEST", 24), is_train=False)
    item = T.AugInput(image)
    resize(item)
    expected = [
        Image.fromarray(image[:, :, i].astype(np.float32)).resize((36, 24), Image.BILINEAR) for i in range(bands)
    ]
    assert item.image.dtype == dtype
    tolerance = 1.01 if dtype == np.uint8 else 0.1
    np.testing.assert_allclose(item.image, np.stack(expected, axis=2), atol=tolerance, rtol=0)


def test_bands_have_brightness_and_a_contrast_of_their_own():
    image = np.random.default_rng(0).random((8, 9, 5), dtype=np.float32) * np.float32([1, 10, 100, 1e3, 6e4])
    changed = BandContrast(0.5, 0.5).get_transform(image).apply_image(image)
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed.mean((0, 1)), image.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(changed.std((0, 1)), 0.5 * image.std((0, 1)), rtol=1e-4)


def test_augmentations_of_rgb_are_left_out_or_refused(make_cfg):
    kinds = [type(x) for x in build_augmentation(make_cfg(*GRAY, "INPUT.COLOR_JITTER", 0.1), is_train=True)]
    assert T.RandomSaturation not in kinds
    assert kinds[-2:] == [T.RandomBrightness, BandContrast]
    with pytest.raises(UserError, match=r"INPUT\.AUGMENTATION lsj .*INPUT\.CHANNELS is 1: set detr or light"):
        build_augmentation(make_cfg(*GRAY, "INPUT.AUGMENTATION", "lsj"), is_train=True)
