import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detr_d2.modeling.attention import MultiheadAttention
from detr_d2.modeling.layers import dropout


@pytest.mark.parametrize("padded", [False, True])
def test_is_torchs(padded):
    """Torch's parameters load under their own names."""
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    nn.init.normal_(reference.in_proj_bias)
    ours = MultiheadAttention(24, 4).eval()
    ours.load_state_dict(reference.state_dict())
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    mask = torch.arange(9) >= torch.tensor([[9], [4]]) if padded else None
    expected, _ = reference(query, key, value, key_padding_mask=mask)
    assert_close(ours(query, key, value, mask), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_weights_are_dropped(padded):
    attention = MultiheadAttention(24, 4, dropout=0.5)
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    mask = torch.arange(9) >= torch.tensor([[9], [4]]) if padded else None
    torch.manual_seed(3)
    dropped = dropout(attention.weights(query, key, value, mask), 0.5)
    values = attention.project(query, key, value)[2]
    expected = attention.out_proj((dropped @ values).transpose(1, 2).flatten(2))
    torch.manual_seed(3)
    assert_close(attention(query, key, value, mask), expected, atol=1e-6, rtol=1e-5)


def test_dropout_in_training_only():
    attention = MultiheadAttention(8, 2, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.eval()
    assert torch.equal(attention(x, x, x), attention(x, x, x))
