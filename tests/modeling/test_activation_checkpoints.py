"""Gradients with activations that are computed again, against those with stored activations."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detr_d2.modeling.activation_checkpoints import checkpoint_activations, repeated_modules
from detr_d2.utils.errors import UserError

BOTH = ("backbone", "transformer")
SIZES = [(64, 96), (48, 64)]
TRAINED_NORMS = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
TRAINING_QUERIES = (
    *("MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0),
    *("MODEL.DETR.DENSE_WEIGHT", 0.3),
)
MASKS = ("MODEL.MASK_ON", True)
TIMM = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.FROZEN_BN", False)


def backward(model: nn.Module, inputs: list[dict], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the gradients of the sum of the losses."""
    torch.manual_seed(seed)
    model.zero_grad()
    sum(model(inputs).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def count_runs(modules: list[nn.Module]) -> list[int]:
    """Count the forward passes of each module from now on, in a list that is updated."""
    counts = [0] * len(modules)

    def counting(index: int):
        def hook(*_):
            counts[index] += 1

        return hook

    for index, module in enumerate(modules):
        module.register_forward_hook(counting(index))
    return counts


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True),
        ("MODEL.DETR.TRANSFORMER", "SmcaTransformer"),
        ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]),
        ("MODEL.DETR.PRE_NORM", True),
        TRAINED_NORMS,
        (*TRAINED_NORMS, "MODEL.DETR.BATCH_INVARIANT_TRAINING", True),
        MASKS,
        TIMM,
        TRAINING_QUERIES,
    ],
    ids=[
        "DETR",
        "batch-invariant",
        "SMCA",
        "multi-scale SMCA",
        "pre-norm",
        "trained norms",
        "invariant, trained norms",
        "masks",
        "timm",
        "training queries",
    ],
)
def test_gradients_and_statistics(in_float64, make_model, make_inputs, options):
    """With the same seed for dropout; trained norms count every batch once."""
    if "MODEL.TIMM.NAME" in options:
        pytest.importorskip("timm")
    model = make_model(*options).train()
    other = copy.deepcopy(model)
    checkpoint_activations(other.detr, BOTH)
    inputs = make_inputs(SIZES, [3, 2], masks=True)
    expected, gradients = backward(model, inputs), backward(other, inputs)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float64
        assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    # State dicts have the same names, and the running statistics of norms the same values.
    for state, x in model.state_dict().items():
        assert_close(other.state_dict()[state], x, rtol=1e-12, atol=1e-14, msg=state)
    # Other seeds give other gradients: dropout is on.
    assert any(not torch.equal(x, expected[name]) for name, x in backward(model, inputs, seed=1).items())


def test_autocast(make_model, make_inputs):
    """Blocks compute again in the precision of their forward pass, outside of its context."""
    inputs = make_inputs(SIZES, [3, 2])
    gradients = []
    for parts in ((), BOTH):
        model = make_model("MODEL.DETR.DROPOUT", 0.0).train()
        checkpoint_activations(model.detr, parts)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model(inputs).values())
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[1].items():
        assert_close(gradient, gradients[0][name], rtol=1e-5, atol=1e-7, msg=name)
    in_float32 = backward(make_model("MODEL.DETR.DROPOUT", 0.0).train(), inputs)
    assert not torch.allclose(gradients[1]["detr.input_proj.weight"], in_float32["detr.input_proj.weight"], rtol=1e-3)


@pytest.mark.parametrize(
    ("parts", "runs"), [((), [1, 1, 1]), (("backbone",), [1, 2, 1]), (("transformer",), [1, 1, 2])]
)
def test_number_of_forward_passes(make_model, make_inputs, parts, runs):
    """Frozen blocks keep nothing, and run once."""
    model = make_model().train()
    network = model.detr
    checkpoint_activations(network, parts)
    resnet = network.backbone[0].backbone
    counts = count_runs([resnet.res2[0].conv1, resnet.res3[0].conv1, network.transformer.decoder.layers[0].norm1])
    inputs = make_inputs(SIZES, [3, 2])
    backward(model, inputs)
    assert counts == runs
    with torch.no_grad():
        model.eval()(inputs)
    assert counts == [x + 1 for x in runs]


def kept_bytes(model: nn.Module, inputs: list[dict]) -> int:
    """Return the bytes that are stored for the backward pass."""
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    own = {x.untyped_storage().data_ptr() for x in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model(inputs)
    assert sum(losses.values()) > 0
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_less_is_stored(make_model, make_inputs):
    inputs = make_inputs([(128, 128)] * 2, [3, 2])
    kept = {}
    for parts in ((), ("backbone",), ("transformer",), BOTH):
        model = make_model().train()
        checkpoint_activations(model.detr, parts)
        kept[parts] = kept_bytes(model, inputs)
    assert kept["backbone",] < 0.6 * kept[()]
    assert kept["transformer",] < kept[()]
    assert kept[BOTH] < min(kept["backbone",], kept["transformer",])


@pytest.mark.parametrize("options", [(), TRAINED_NORMS, (*TRAINED_NORMS, "MODEL.RESNETS.NORM", "GN")])
def test_two_forward_passes_before_the_backward_pass(in_float64, make_model, make_inputs, options):
    """Two padded batches of other sizes: each block runs again with the valid sizes of its own batch."""
    model = make_model(*options, "MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.BATCH_INVARIANT_TRAINING", True).train()
    other = copy.deepcopy(model)
    checkpoint_activations(other.detr, BOTH)
    batches = [make_inputs(SIZES, [3, 2]), make_inputs([(33, 70), (96, 40), (64, 64)], [1, 0, 2], seed=1)]
    for x in (model, other):
        x.zero_grad()
        sum(sum(x(inputs).values()) for inputs in batches).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in other.named_parameters():
        if name in expected:
            assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    for name, x in model.state_dict().items():
        assert_close(other.state_dict()[name], x, rtol=1e-12, atol=1e-14, msg=name)


def test_two_backward_passes_of_one_graph(make_model, make_inputs):
    model = make_model("MODEL.DETR.BATCH_INVARIANT_TRAINING", True).train()
    checkpoint_activations(model.detr, BOTH)
    loss = sum(model(make_inputs(SIZES, [3, 2])).values())
    weight = model.detr.backbone[0].backbone.res3[0].conv1.weight
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_unknown_name(make_model):
    with pytest.raises(UserError, match=r"SOLVER.ACTIVATION_CHECKPOINTS is 'encoder': choose one of backbone, transf"):
        checkpoint_activations(make_model().detr, ("encoder",))


def test_module_without_blocks(make_model):
    network = make_model("MODEL.DETR.ENC_LAYERS", 0).detr
    network.transformer.decoder.layers = nn.ModuleList()
    with pytest.raises(UserError, match="DetrTransformer has no list of blocks; leave out transformer"):
        checkpoint_activations(network, ("transformer",))


def test_repeated_modules(make_model):
    """They are the outermost ones."""
    network = make_model().detr
    resnet = network.backbone[0].backbone
    assert list(repeated_modules(resnet)) == [*resnet.res2, *resnet.res3, *resnet.res4, *resnet.res5]
    transformer = network.transformer
    assert list(repeated_modules(transformer)) == [*transformer.encoder.layers, *transformer.decoder.layers]
