import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.structures import PaddedBatch

SIZES = [(64, 96), (48, 32)]


@pytest.fixture
def batch():
    return PaddedBatch.from_images([torch.ones(3, *size) for size in SIZES])


def test_images_are_padded_with_zeros(batch):
    assert batch.size == (64, 96)
    assert batch.image_sizes == tuple(SIZES)
    assert batch.tensor[0].min() == 1
    assert batch.tensor[1].sum() == 3 * 48 * 32 == batch.tensor[1, :, :48, :32].sum()


@pytest.mark.parametrize(("options", "size"), [((50,), (100, 100)), ((32,), (64, 96)), ((32, 128), (128, 128))])
def test_sizes_of_the_tensor(options, size):
    assert PaddedBatch.from_images([torch.ones(3, *x) for x in SIZES], *options).size == size


@pytest.mark.parametrize("seed", range(20))
def test_padding_mask_is_the_originals(seed):
    """Its own lines: the mask of the pixels, sampled with ``nearest`` at the size of the features."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 300, (3, 2), generator=generator).tolist()
    batch = PaddedBatch.from_images([torch.zeros(3, h, w) for h, w in sizes])
    pixels = torch.ones(3, *batch.size, dtype=torch.bool)
    for mask, (h, w) in zip(pixels, sizes, strict=True):
        mask[:h, :w] = False
    size = tuple(-(-x // 32) for x in batch.size)
    expected = F.interpolate(pixels[None].float(), size=size).to(torch.bool)[0]
    assert torch.equal(batch.padding_mask(size, [size] * 3), expected)


def test_no_mask_where_nothing_is_padded():
    batch = PaddedBatch.from_images([torch.zeros(3, 64, 96)] * 2)
    assert batch.padding_mask((2, 3), [(2, 3)] * 2) is None


def test_image_sizes_are_measured_in_features(batch):
    assert_close(batch.image_sizes_at(32), torch.tensor([[3.0, 2.0], [1.0, 1.5]]))


def test_valid_sizes_are_rounded_up(batch):
    assert batch.is_valid_throughout
    assert batch.valid_sizes_at(32) == ((2, 3), (2, 3))
    batch = batch.with_valid_sizes(batch.image_sizes)
    assert not batch.is_valid_throughout
    assert batch.valid_sizes_at(1) == tuple(SIZES)
    assert batch.valid_sizes_at(32) == ((2, 3), (2, 1))
    assert batch.valid_sizes_at(5) == ((13, 20), (10, 7))


@pytest.mark.parametrize("stride", [1, 5, 32])
def test_padding_is_zeroed_alike_with_and_without_gradients(batch, stride):
    batch = batch.with_valid_sizes([(64, 96), (33, 17)])
    x = torch.randn(2, 4, *(-(-side // stride) for side in batch.size), requires_grad=True)
    masked = batch.zero_padding(x, stride)
    height, width = -(-33 // stride), -(-17 // stride)
    assert torch.equal(masked[0], x[0])
    assert torch.equal(masked[1, :, :height, :width], x[1, :, :height, :width])
    assert not masked[1, :, height:].any()
    assert not masked[1, :, :, width:].any()
    masked.sum().backward()
    assert x.grad[1].sum() == 4 * height * width
    with torch.no_grad():
        assert torch.equal(batch.zero_padding(x.detach().clone(), stride), masked)
