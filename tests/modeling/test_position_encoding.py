import pytest
import torch
from detr.models import position_encoding as original
from detr.util.misc import NestedTensor
from torch.testing import assert_close

from detr_d2.modeling.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from detr_d2.utils.errors import UserError

FEATURES = torch.zeros(2, 3, 6, 9)


def padding() -> torch.Tensor:
    mask = torch.ones(2, 6, 9, dtype=torch.bool)
    mask[0, :6, :4] = False
    mask[1, :3, :9] = False
    return mask


def test_sine_is_the_originals():
    expected = original.PositionEmbeddingSine(8, normalize=True)(NestedTensor(FEATURES, padding()))
    assert_close(PositionEmbeddingSine(16)(FEATURES, padding()), expected, atol=1e-6, rtol=0)


def test_sine_without_padding_is_shared_by_the_batch():
    embedding = PositionEmbeddingSine(16)
    alone = embedding(FEATURES, None)
    assert alone.shape == (1, 16, 6, 9)
    nothing_padded = embedding(FEATURES, torch.zeros(2, 6, 9, dtype=torch.bool))
    assert torch.equal(alone.expand_as(nothing_padded), nothing_padded)
    assert embedding(FEATURES, None) is alone


def test_learned_is_the_originals():
    reference = original.PositionEmbeddingLearned(8)
    ours = PositionEmbeddingLearned(16)
    ours.load_state_dict(reference.state_dict())
    expected = reference(NestedTensor(FEATURES, padding()))
    assert torch.equal(ours(FEATURES, None).expand_as(expected), expected)


def test_learned_table_has_an_end():
    with pytest.raises(UserError, match=r"has 50 rows and columns, .* have 6 x 51"):
        PositionEmbeddingLearned(16)(torch.zeros(1, 3, 6, 51), None)
