"""Parts of a model that are for training alone: they have gradients, and change no results."""

import pytest
import torch

SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")
MULTI_SCALE = (
    *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
)
MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NHEADS", 8)
MODELS = {"DETR": (), "SMCA": SMCA, "multi-scale SMCA": MULTI_SCALE, "masks": MASKS}
PARTS = {
    "queries": ("MODEL.DETR.QUERY_GROUPS", 3, "MODEL.DETR.DENOISING.GROUPS", 2),
    "dense supervision": ("MODEL.DETR.DENSE_WEIGHT", 0.3),
}
parts = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


@parts
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_results_are_those_of_the_plain_model(make_model, make_inputs, parts, options):
    model = make_model(*parts, *options)
    plain = make_model(*options)
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if name in plain.state_dict()})
    inputs = [{"image": x["image"]} for x in make_inputs([(64, 64), (48, 96)], [0, 0])]
    with torch.no_grad():
        results, expected = (m(inputs) for m in (model, plain))
    for a, b in zip(results, expected, strict=True):
        for name, x in b["instances"].get_fields().items():
            y = a["instances"].get(name)
            assert torch.equal(getattr(x, "tensor", x), getattr(y, "tensor", y))


@parts
@pytest.mark.parametrize("counts", [[3, 0], [0, 0]])
@pytest.mark.parametrize("options", [(), SMCA, MULTI_SCALE], ids=["DETR", "SMCA", "multi-scale SMCA"])
def test_every_parameter_has_a_finite_gradient(make_model, make_inputs, parts, options, counts):
    """Also without objects: distributed training waits for all of them."""
    model = make_model(*parts, *options).train()
    sum(model(make_inputs([(64, 64), (64, 96)], counts)).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
