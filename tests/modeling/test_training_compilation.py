"""Training with compiled layers against training without; the last step of compiling, which is slow, is left out."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._functorch.compilers import nop
from torch.testing import assert_close

from detr_d2.inference import optimize_for_inference
from detr_d2.modeling import compilation
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import can_compile_training, compile_for_training
from detr_d2.utils.precision import without_autocast

SMALL = ("MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3"]),
)
TRAINING_QUERIES = (
    *("MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0),
    *("MODEL.DETR.DENSE_WEIGHT", 0.3),
)
MASKS = ("MODEL.MASK_ON", True)
SIZES = [(64, 96), (80, 64)]

needs_new_torch = pytest.mark.skipif(not can_compile_training(), reason="compiles the backward pass too late")


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch):
    """Count what is compiled, without the last step of compiling."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", counter)
    return counter


def codes() -> int:
    """Return the number of compiled pieces of code; a backend may be called twice for one."""
    return counters["stats"]["unique_graphs"]


def backward(model, inputs, dtype=None):
    """Return the losses, and the gradients of their sum."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.detach() for name, x in losses.items()}, gradients


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name, x in b.items():
            # Some gradients are zero up to rounding.
            scale = x.abs().max().clamp(min=1e-3)
            assert_close(a[name] / scale, x / scale, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@needs_new_torch
@pytest.mark.parametrize(
    ("options", "checkpoints"),
    [
        ((), ("backbone", "transformer")),
        ((*SMCA, *MASKS, *TRAINING_QUERIES, "MODEL.DETR.PRE_NORM", True), ()),
        (MULTI_SCALE, ()),
    ],
    ids=["checkpoints", "SMCA with masks and training queries", "multi-scale SMCA"],
)
def test_losses_and_gradients(make_model, make_inputs, counter, options, checkpoints):
    model = make_model(*SMALL, *options).train()
    batch = make_inputs(SIZES, [3, 2], masks=True)
    expected = backward(model, batch)
    names = list(model.state_dict())
    assert compile_for_training(model.detr.transformer)
    checkpoint_activations(model.detr, checkpoints)
    assert_same(backward(model, batch), expected)
    assert counter.frame_count
    assert list(model.state_dict()) == names


@pytest.mark.slow
@needs_new_torch
def test_bfloat16(make_model, make_inputs, counter):
    """Compiled code rounds elsewhere, not more: the distance from float32 does not grow."""
    model = make_model(*SMALL, *SMCA).train()
    batch = make_inputs(SIZES, [3, 2], masks=True)
    _, exact = backward(model, batch)
    losses, rounded = backward(model, batch, torch.bfloat16)
    compile_for_training(model.detr.transformer)
    compiled_losses, compiled = backward(model, batch, torch.bfloat16)
    assert counter.frame_count
    assert_close(sum(compiled_losses.values()), sum(losses.values()), rtol=1e-2, atol=0)
    assert all(x.dtype == torch.float32 for x in compiled.values())
    exact, rounded, compiled = (torch.cat([x[name].flatten() for name in exact]) for x in (exact, rounded, compiled))
    assert 0 < (compiled - exact).norm() < 1.2 * (rounded - exact).norm()


class Float32Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        with without_autocast(x.device):
            return self.linear(x)


@needs_new_torch
def test_float32_layers_have_float32_gradients(counter):
    """The forward pass is compiled under autocast, and the backward pass runs without it."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.ModuleList([Float32Layer(), Float32Layer()]))
    layer, x = layers[0][0], torch.randn(8, 64)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.linear.weight)
    compile_for_training(layers)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).square().sum()
    assert_close(torch.autograd.grad(loss, layer.linear.weight), expected, rtol=1e-5, atol=1e-5)
    assert codes() == 1


@pytest.mark.slow
@needs_new_torch
@pytest.mark.parametrize("options", [(), SMCA], ids=["DETR", "SMCA"])
def test_few_codes_for_many_sizes(make_model, make_inputs, counter, options):
    """Whatever the number of layers."""
    model = make_model(*SMALL, "MODEL.DETR.ENC_LAYERS", 3, "MODEL.DETR.DEC_LAYERS", 3, *options).train()
    compile_for_training(model.detr.transformer)
    # The first features are as high as wide.
    for sizes in ([(64, 96), (80, 64)], [(96, 64), (64, 128)], [(33, 70), (120, 64)]):
        before = codes()
        backward(model, make_inputs(sizes, [3, 2]))
        # The first encoder and decoder layers have inputs of other strides, or need other gradients.
        assert codes() - before == (4 if before == 0 else 0)


@needs_new_torch
def test_evaluation_is_not_compiled(make_model, make_inputs, counter):
    model = make_model(*SMALL)
    inputs = make_inputs(SIZES, [3, 2])
    with torch.no_grad():
        (expected, _) = model(inputs)
        compile_for_training(model.detr.transformer)
        (found, _) = model(inputs)
        model.train()(inputs)
    model.eval()(inputs)
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert not counter.frame_count


@needs_new_torch
def test_a_copy_is_trained_by_itself(make_model, make_inputs, counter):
    model = make_model(*SMALL).train()
    batch = make_inputs(SIZES, [3, 2])
    compile_for_training(model.detr.transformer)
    first = backward(model, batch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    assert_same(backward(model, batch), first)
    assert_same(backward(other, batch), backward_without(other, batch))


def backward_without(model, batch):
    for layer in (*model.detr.transformer.encoder.layers, *model.detr.transformer.decoder.layers):
        del layer.forward
    return backward(model, batch)


@needs_new_torch
@pytest.mark.parametrize("direction", ["fw_compiler", "bw_compiler"])
def test_where_compiling_fails(make_model, make_inputs, monkeypatch, caplog, direction):
    """There is one warning, before anything is computed; losses and gradients are those without compiling."""

    def failing(graph, example_inputs):
        raise RuntimeError("no compiler")

    backend = aot_autograd(**{"fw_compiler": nop, "bw_compiler": nop, direction: failing})
    monkeypatch.setattr(compilation, "BACKEND", backend)
    model = make_model(*SMALL).train()
    batch = make_inputs(SIZES, [3, 2])
    expected = backward(model, batch)
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        compile_for_training(model.detr.transformer)
        for _ in range(2):
            assert_same(backward(model, batch), expected)
    (message,) = [x.getMessage() for x in caplog.records if x.name.startswith("detr_d2")]
    assert message.startswith("Training without torch.compile, which failed: ")
    assert "no compiler" in message


def test_with_an_old_version(make_model, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "_COMPILE_BACKWARD_FIRST", "no_such_option")
    monkeypatch.setattr(compilation, "TORCH_VERSION", (2, 3))
    transformer = make_model(*SMALL).detr.transformer
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        assert not compile_for_training(transformer)
    assert "forward" not in vars(transformer.encoder.layers[0])
    assert caplog.messages == ["Training without torch.compile, which needs a later version of PyTorch; this is 2.3."]


@needs_new_torch
def test_predicting_afterwards(make_model, make_inputs, counter):
    """The transformer is compiled in one piece."""
    model = make_model(*SMALL)
    compile_for_training(model.detr.transformer)
    inputs = make_inputs(SIZES[:1], [0])
    optimized = optimize_for_inference(model, compile=True)
    with torch.no_grad():
        (found,), (expected,) = optimized(inputs), model(inputs)
    assert_close(found["instances"].scores, expected["instances"].scores, rtol=0, atol=1e-4)
    assert optimized.detr.transformer.forward.works
    assert codes() == 2
