"""Images kept in memory: the same pixels, within the limit, safe from being written to."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from detr_d2.data import DetrDatasetMapper
from detr_d2.data.image_cache import ImageCache
from detr_d2.data.images import read_image


@pytest.fixture
def paths(make_image):
    """Three images of 40 x 60 x 3 = 7200 bytes."""
    return [make_image(name=f"{i}.png") for i in range(3)]


def overwrite(path):
    Image.new("RGB", (60, 40), (9, 9, 9)).save(path)


def test_images_are_kept_until_the_limit(paths):
    cache = ImageCache("BGR", megabytes=0.0144)
    first = [cache.read(path) for path in paths]
    for path, image in zip(paths, first, strict=True):
        np.testing.assert_array_equal(image, read_image(path, "BGR"))
        overwrite(path)
    again = [cache.read(path) for path in paths]
    assert [(image == 9).all() for image in again] == [False, False, True]
    np.testing.assert_array_equal(again[0], first[0])
    assert not first[0].flags.writeable


def test_nothing_is_kept_by_default(make_cfg, paths):
    mapper = DetrDatasetMapper(make_cfg("INPUT.MIN_SIZE_TRAIN", (0,)), is_train=True)
    mapper({"file_name": paths[0]})
    overwrite(paths[0])
    assert (mapper({"file_name": paths[0]})["image"] == 9).all()


def test_inference_keeps_nothing(make_cfg, paths):
    mapper = DetrDatasetMapper(make_cfg("DATALOADER.CACHE_MEGABYTES", 10), is_train=False)
    mapper({"file_name": paths[0]})
    overwrite(paths[0])
    assert (mapper({"file_name": paths[0]})["image"] == 9).all()


def test_writing_to_a_sample_leaves_the_kept_image_alone(paths):
    mapper = DetrDatasetMapper(is_train=True, augmentations=[], cache_megabytes=1)
    sample = mapper({"file_name": paths[0]})["image"]
    expected = sample.clone()
    sample.zero_()
    assert torch.equal(mapper({"file_name": paths[0]})["image"], expected)


def test_same_samples_with_and_without(make_cfg, coco_records):
    """Real images, twice each, with the same draws."""
    samples = []
    for megabytes in (0, 100):
        mapper = DetrDatasetMapper(make_cfg("DATALOADER.CACHE_MEGABYTES", megabytes), is_train=True)
        np.random.seed(0)
        samples.append([mapper(record)["image"] for record in coco_records[0][:4] * 2])
    assert all(map(torch.equal, *samples))


def test_copies_start_empty(paths):
    cache = ImageCache("RGB", megabytes=0.0150)
    cache.read(paths[0])
    assert len(pickle.dumps(cache)) < 1000
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.free_bytes == 15000
    overwrite(paths[0])
    assert (copy.read(paths[0]) == 9).all()
    assert not (cache.read(paths[0]) == 9).all()
