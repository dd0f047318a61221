import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.testing import assert_close

from detr_d2.modeling.resnet import merge_frozen_norms


def test_merging_keeps_output_and_gradients():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(6)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2.0)
    model = nn.Sequential(Conv2d(4, 6, 3, stride=2, padding=1, bias=False, norm=norm)).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.batch_norm(
        nn.functional.conv2d(x, model[0].weight, stride=2, padding=1),
        norm.running_mean, norm.running_var, norm.weight, norm.bias,
    )  # fmt: skip
    (expected**2).sum().backward()
    gradients = x.grad.clone(), model[0].weight.grad.clone()
    x.grad = model[0].weight.grad = None

    names = list(model.state_dict())
    merge_frozen_norms(model)
    found = model(x)
    (found**2).sum().backward()
    assert_close(found, expected)
    assert_close((x.grad, model[0].weight.grad), gradients)
    assert list(model.state_dict()) == names


def test_other_convolutions_are_not_merged():
    model = nn.Sequential(Conv2d(3, 6, 1, norm=nn.BatchNorm2d(6)), nn.Conv2d(6, 6, 1))
    merge_frozen_norms(model)
    assert [type(x) for x in model] == [Conv2d, nn.Conv2d]
