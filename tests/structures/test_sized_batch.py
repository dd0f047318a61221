import pytest
import torch
from torch.testing import assert_close

from detr_d2.structures import PaddedBatch, SizedBatch


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_a_padded_batch(seed):
    """Whose sizes are tuples, and which computes one image after the other."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 150, (3, 2), generator=generator)
    expected = PaddedBatch.from_images([torch.ones(3, h, w) for h, w in sizes.tolist()])
    expected = expected.with_valid_sizes(expected.image_sizes)
    # What is beyond the images must not matter.
    batch = SizedBatch(torch.where(expected.tensor > 0, expected.tensor, 7.0), sizes)
    assert torch.equal(batch.tensor, expected.tensor)
    for stride in (1, 4, 32):
        valid = batch.valid_sizes_at(stride)
        assert valid.tolist() == [list(x) for x in expected.valid_sizes_at(stride)]
        assert_close(batch.image_sizes_at(stride), expected.image_sizes_at(stride))
        size = tuple(-(-side // stride) for side in expected.size)
        mask = batch.padding_mask(size, valid)
        assert torch.equal(mask, expected.padding_mask(size, expected.valid_sizes_at(stride)))
        features = torch.randn(3, 2, *size, generator=generator)
        assert torch.equal(batch.zero_padding(features, stride), expected.zero_padding(features.clone(), stride))
