"""Dropout against its definition, since torch's own uses other random numbers."""

import math

import pytest
import torch

from detr_d2.modeling.layers import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p):
    torch.manual_seed(0)
    x = torch.full((100, 1001), 2.0)
    found = dropout(x, p)
    kept = found != 0
    error = 4 * math.sqrt(p * (1 - p) / x.numel())
    assert (~kept).float().mean().item() == pytest.approx(p, abs=error)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 2 / (1 - p)), rtol=1e-4, atol=0)


def test_values_are_dropped_independently():
    """Also the four values that share a random number."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(200_000), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 5, 64):
        correlation = 4 * (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(len(kept))


def test_gradient_is_dropped_where_the_value_was():
    x = torch.randn(7, 9, requires_grad=True)
    found = dropout(x, 0.4)
    found.sum().backward()
    torch.testing.assert_close(x.grad, found.detach() / x.detach())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 0, 2), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_shape_and_precision(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    found = dropout(x, 0.5)
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert set(found.flatten().tolist()) <= {0.0, 2.0}


def test_not_contiguous():
    x = torch.arange(1.0, 61).view(3, 4, 5).transpose(0, 2)
    found = dropout(x, 0.5)
    assert ((found == 0) | (found == 2 * x)).all()


def test_seed_decides():
    x = torch.ones(1000)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropout(x, 0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_nothing_and_everything():
    x = torch.randn(10)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1e-9), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(10))


def test_in_training_only():
    layer, x = Dropout(0.5), torch.ones(100)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x
