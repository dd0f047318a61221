"""The network compiled and exported as it is, without changes and without warnings of this package."""

import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import TORCH_VERSION
from torch import nn
from torch.testing import assert_close

import detr_d2
from detr_d2.structures import PaddedBatch

SMALL = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1)
MASKS = ("MODEL.MASK_ON", True)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2"]),
)
ALONE, PADDED = [(64, 96)], [(64, 96), (48, 70)]
CASES = {
    "DETR, padded": (SMALL, PADDED),
    "learned positions": ((*SMALL, "MODEL.DETR.POSITION_EMBEDDING", "learned"), ALONE),
    "masks": ((*SMALL, *MASKS), ALONE),
    "masks, SMCA, padded": ((*SMALL, *MASKS, *SMCA), PADDED),
    "multi-scale SMCA, padded": ((*SMALL, *MULTI_SCALE), PADDED),
}
PACKAGE = Path(detr_d2.__file__).parent

IS_NEW_TORCH = TORCH_VERSION >= (2, 6)

needs_new_torch = pytest.mark.skipif(not IS_NEW_TORCH, reason="an early version of torch.export")


class FixedSizes(nn.Module):
    """A network for images of known sizes, from (B, 3, H, W) normalized pixels to tensors."""

    def __init__(self, network: nn.Module, batch: PaddedBatch):
        super().__init__()
        self.network = network
        self.image_sizes, self.valid_sizes = batch.image_sizes, batch.valid_sizes

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.network(PaddedBatch(pixels, self.image_sizes, self.valid_sizes), all_layers=False)
        if output.mask_inputs is None:
            return output.logits, output.boxes
        queries = [torch.arange(self.network.num_queries)] * len(self.image_sizes)
        return output.logits, output.boxes, *self.network.masks(output.mask_inputs, queries)


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextmanager
def no_own_warnings():
    """Fail where a warning originates from this package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [f"{x.filename}:{x.lineno}: {x.message}" for x in caught if PACKAGE in Path(x.filename).parents]
    assert not found


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, make_model, make_inputs) -> tuple[nn.Module, PaddedBatch]:
    options, sizes = request.param
    model = make_model(*options)
    batch = model.preprocess_image(make_inputs(sizes, [0] * len(sizes)))
    return FixedSizes(model.detr, batch).eval(), batch


@needs_new_torch
@torch.no_grad()
def test_compiled_whole(case):
    """In one piece, without a graph break; the package does not compile with early versions of PyTorch either."""
    module, batch = case
    expected = module(batch.tensor)
    with no_own_warnings():
        found = torch.compile(module, backend="eager", fullgraph=True)(batch.tensor)
    assert_close(found, expected, atol=1e-5, rtol=0)


@needs_new_torch
@torch.no_grad()
def test_exported(case):
    module, batch = case
    expected = module(batch.tensor)
    with no_own_warnings():
        program = torch.export.export(module, (batch.tensor,))
    assert_close(program.module()(batch.tensor), expected, atol=1e-5, rtol=0)
    other = torch.randn_like(batch.tensor)
    for image, (height, width) in zip(other, batch.image_sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    assert_close(program.module()(other), module(other), atol=1e-5, rtol=0)
