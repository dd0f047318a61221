"""The whole model against the original code (python-detr), on weights carried over by our conversion."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detr.models.detr import PostProcess
from detr.util.misc import NestedTensor
from torch.testing import assert_close

SMALL_R50 = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
VARIANTS = {
    "published size": (
        *SMALL_R50,
        *("MODEL.DETR.NUM_CLASSES", 91, "MODEL.DETR.NUM_OBJECT_QUERIES", 100, "MODEL.DETR.HIDDEN_DIM", 256),
        *("MODEL.DETR.NHEADS", 8, "MODEL.DETR.DIM_FEEDFORWARD", 2048),
        *("MODEL.DETR.ENC_LAYERS", 6, "MODEL.DETR.DEC_LAYERS", 6),
    ),
    "r18": (),
    "r50": SMALL_R50,
    "dc5": (*SMALL_R50, "MODEL.RESNETS.RES5_DILATION", 2),
    "pre-norm": ("MODEL.DETR.PRE_NORM", True),
    "learned positions": ("MODEL.DETR.POSITION_EMBEDDING", "learned"),
    "one decoder layer": ("MODEL.DETR.DEC_LAYERS", 1),
    "no auxiliary losses": ("MODEL.DETR.DEEP_SUPERVISION", False),
}
# In the original, the padding of a batch leaks into the features.
ORIGINAL = ("MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.BATCH_INVARIANT", False)
SIZES = {
    "one": [(96, 128)],
    "alike": [(128, 160), (128, 160)],
    "padded": [(160, 97), (75, 200), (33, 64)],
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def shared_pair(request, make_cfg, make_original):
    cfg = make_cfg(*ORIGINAL, *request.param)
    original = make_original(cfg)
    model = build_model(cfg)
    model.load_state_dict(original.state_dict())
    return cfg, model, original


@pytest.fixture
def pair(shared_pair):
    """Return the config, our model and the original with the same weights, without dropout, in evaluation mode."""
    cfg, model, original = shared_pair
    return cfg, model.eval(), original


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_logits_and_boxes_of_every_layer(pair, make_inputs, original_batch, sizes):
    cfg, model, original = pair
    inputs = make_inputs(sizes, [0] * len(sizes))
    with torch.no_grad():
        logits, boxes, _ = model.detr(model.preprocess_image(inputs), all_layers=cfg.MODEL.DETR.DEEP_SUPERVISION)
        expected = original(original_batch(inputs, cfg)[0])
    layers = [*expected.get("aux_outputs", []), expected]
    assert len(logits) == len(layers)
    for i, layer in enumerate(layers):
        assert_close(logits[i], layer["pred_logits"], atol=1e-5, rtol=0)
        assert_close(boxes[i], layer["pred_boxes"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_losses(pair, make_inputs, original_batch, make_original_criterion, sizes):
    cfg, model, original = pair
    inputs = make_inputs(sizes, [4, 2, 0][-len(sizes) :] if len(sizes) > 1 else [3])
    criterion = make_original_criterion(cfg)
    samples, targets = original_batch(inputs, cfg)
    with torch.no_grad():
        losses = model.train()(inputs)
        expected = criterion(original(samples), targets)
    weighted = {name: expected[name] * weight for name, weight in criterion.weight_dict.items()}
    assert losses.keys() == weighted.keys()
    for name, value in weighted.items():
        assert_close(losses[name], value, rtol=1e-5, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("sizes", [SIZES["one"], SIZES["padded"]], ids=["one", "padded"])
def test_gradients(pair, make_inputs, original_batch, sizes):
    """Compare those of a random linear function, in float64: rounding to float32 can switch a ReLU."""
    cfg, *models = pair
    model, original = (copy.deepcopy(x).double() for x in models)
    inputs = make_inputs(sizes, [0] * len(sizes))
    batch = model.preprocess_image(inputs)
    predictions = model.detr(batch, all_layers=cfg.MODEL.DETR.DEEP_SUPERVISION)[:2]
    weights = [torch.randn_like(x) for x in predictions]
    sum((w * x).sum() for w, x in zip(weights, predictions, strict=True)).backward()

    samples, _ = original_batch(inputs, cfg)
    outputs = original(NestedTensor(batch.tensor, samples.mask))
    layers = [*outputs.get("aux_outputs", []), outputs]
    names = ("pred_logits", "pred_boxes")
    expected = [torch.stack([layer[name] for layer in layers]) for name in names]
    sum((w * x).sum() for w, x in zip(weights, expected, strict=True)).backward()

    expected = gradients_under_our_names(copy.deepcopy(model), original)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    for name, gradient in found.items():
        distance = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert distance < 1e-5, f"{name}: {distance}"


def gradients_under_our_names(model, original):
    """Return the original's gradients under our names, loaded as if they were weights."""
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in original.named_parameters()}
    model.load_state_dict({**original.state_dict(), **gradients})
    return dict(model.named_parameters())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_detections(pair, make_inputs, original_batch, sizes):
    cfg, model, original = pair
    inputs = make_inputs(sizes, [0] * len(sizes))
    output_sizes = [(480, 640), (300, 100), (7, 1000)][: len(sizes)]
    for x, (height, width) in zip(inputs, output_sizes, strict=True):
        x["height"], x["width"] = height, width
    with torch.no_grad():
        results = model(inputs)
        expected = PostProcess()(original(original_batch(inputs, cfg)[0]), torch.tensor(output_sizes))
    for result, reference in zip(results, expected, strict=True):
        instances = result["instances"]
        assert_close(instances.scores, reference["scores"], atol=1e-5, rtol=0)
        assert_close(instances.pred_boxes.tensor, reference["boxes"], atol=1e-2, rtol=1e-5)
        assert instances.pred_classes.tolist() == reference["labels"].tolist()
