"""Layers: a multilayer perceptron, logits of classes, and dropout that is fast on CPUs too."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BITS = 16


class MLP(nn.Module):
    """A perceptron with ReLU between its layers: (..., input_dim) -> (..., output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        sizes = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


def class_layer(hidden_dim: int, num_classes: int, prior: float | None) -> nn.Linear:
    """Build a layer of logits of ``num_classes`` foreground classes and no-object.

    Args:
        prior: initial probability of each class, for sigmoids (arXiv 1708.02002, section 3.3). None: the bias is not
            set.
    """
    layer = nn.Linear(hidden_dim, num_classes + 1)
    if prior is not None:
        nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
    return layer


class Dropout(nn.Dropout):
    """Module that applies :func:`dropout` in training."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each value of ``x`` to zero with probability ``p``, and divide the others by ``1 - p``.

    PyTorch on CPUs samples one random number per value, one after the other: a tenth of a training step. Here each
    random number of 64 bits decides four values. Therefore ``p`` is rounded to a multiple of 2^-16, and the values that
    are kept are scaled by the rounded one.
    """
    dropped = round(p * 2**_BITS)
    if x.device.type != "cpu" or not 0 < dropped < 2**_BITS or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() * _BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)
    # In the precision of x: a bool tensor would be multiplied much slower.
    kept = torch.ge(numbers, dropped - 2 ** (_BITS - 1), out=x.new_empty(x.shape))
    return x * kept.mul_(2**_BITS / (2**_BITS - dropped))
