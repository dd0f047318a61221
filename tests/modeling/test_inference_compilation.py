"""``torch.compile`` for inference: one code for many sizes, and failures. The real backend is slow, and runs once."""

import logging
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from detr_d2.inference import optimize_for_inference
from detr_d2.modeling import compilation, record_attention

SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
TWO_LEVELS = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"])
# Tracing is slow. For fewer than 20480 features PyTorch uses other convolutions, and compiles again.
SMALL = (
    *("MODEL.RESNETS.OUT_FEATURES", ["res3"]),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "MODEL.DETR.DROPOUT", 0.0),
)
SIZES = [(104, 136), (121, 111), (104, 160), (128, 128), (105, 200), (161, 105)]


needs_new_torch = pytest.mark.skipif(
    compilation.TORCH_VERSION < compilation._MIN_INFERENCE_VERSION, reason="compiles one piece of code per layer"
)


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network_outputs(model, inputs):
    with torch.no_grad():
        logits, boxes, _ = model.detr(model.preprocess_image(inputs), all_layers=False)
    return logits, boxes


def assert_same(model, other, inputs):
    for found, expected in zip(network_outputs(model, inputs), network_outputs(other, inputs), strict=True):
        assert_close(found, expected, atol=1e-4, rtol=0)


@needs_new_torch
@pytest.mark.parametrize("options", [(), SMCA, MULTI_SCALE], ids=["box", "smca", "multi-scale smca"])
def test_few_codes_for_many_sizes(make_model, make_inputs, monkeypatch, options):
    """One for single images of any size, one for padded batches of any sizes; both with the right results."""
    model = make_model(*SMALL, *options)
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    optimized = optimize_for_inference(model, compile=True)
    inputs = make_inputs(SIZES, [0] * len(SIZES))
    assert_same(optimized, model, inputs[:1])
    modules = counter.frame_count
    assert modules == 2
    for x in inputs[1:]:
        assert_same(optimized, model, [x])
    assert counter.frame_count <= modules + 1  # the first of equal height and width may need its own
    counter.frame_count = 0
    for batch in (inputs[:2], inputs[2:5], inputs[3:]):
        assert_same(optimized, model, batch)
    assert counter.frame_count <= modules + 1
    counter.frame_count = 0
    for batch in (inputs, inputs[:3], inputs[4:], *([x] for x in inputs)):
        assert_same(optimized, model, batch)
    assert counter.frame_count == 0


def failing(graph, example_inputs):
    raise RuntimeError("no compiler\nmore words")


def test_with_an_old_version(make_model, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "TORCH_VERSION", (2, 3))
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        optimized = optimize_for_inference(make_model(*SMALL), compile=True)
    assert "forward" not in vars(optimized.detr.transformer)
    assert caplog.messages == ["Predicting without torch.compile, which needs PyTorch 2.4 or later; this is 2.3."]


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[:2]], ids=["alone", "padded"])
def test_where_compiling_fails(make_model, make_inputs, monkeypatch, caplog, sizes):
    """There is one warning, and results are right from the first image on."""
    monkeypatch.setattr(compilation, "BACKEND", failing)
    monkeypatch.setattr(compilation, "TORCH_VERSION", (2, 15))
    model = make_model(*SMALL)
    inputs = make_inputs(sizes, [0] * len(sizes))
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        optimized = optimize_for_inference(model, compile=True)
        for _ in range(2):
            assert_same(optimized, model, inputs)
    (message,) = [x.getMessage() for x in caplog.records if x.name.startswith("detr_d2")]
    assert message.startswith("Predicting without torch.compile, which failed:")
    assert "no compiler" in message
    assert "more words" not in message


@needs_new_torch
def test_errors_of_the_caller_are_raised(make_model, make_inputs, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "BACKEND", CompileCounter())
    optimized = optimize_for_inference(make_model(*SMALL), compile=True)
    (x,) = make_inputs(SIZES[:1], [0])
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        optimized.detr.backbone[0].backbone(torch.zeros(1, 4, 64, 64))
    assert not [y for y in caplog.records if y.name.startswith("detr_d2") and y.levelno >= logging.WARNING]
    assert optimized([x])


def test_attention_can_be_recorded(make_model, make_inputs, monkeypatch):
    """Compiled code calls no hooks: it does not run while there are any."""
    monkeypatch.setattr(compilation, "BACKEND", CompileCounter())
    model = make_model(*SMALL)
    optimized = optimize_for_inference(model, compile=True)
    inputs = make_inputs(SIZES[:1], [0])
    optimized(inputs)
    recorded = []
    for x in (model, optimized):
        with record_attention(x, None) as record, torch.no_grad():
            x(inputs)
        recorded.append((*record.decoder, *record.encoder))
    assert len(recorded[0]) == 2
    for found, expected in zip(*recorded, strict=True):
        assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@needs_new_torch
@pytest.mark.parametrize(
    ("precision", "options"),
    [("float32", ()), ("bfloat16", (*SMCA, *TWO_LEVELS))],
    ids=["box, float32", "smca, two levels, bfloat16"],
)
def test_compiled_for_this_processor(make_model, make_inputs, precision, options):
    model = make_model(*SMALL, *options)
    inputs = make_inputs(SIZES[:3], [0] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimized = optimize_for_inference(model, precision=precision, compile=True)
        for batch in ([inputs[0]], [inputs[1]], inputs):
            for found, expected in zip(network_outputs(optimized, batch), network_outputs(model, batch), strict=True):
                assert_close(found, expected, atol=1e-4 if precision == "float32" else 0.1, rtol=0)
    assert not optimized.detr.transformer.forward.compiler.failed
