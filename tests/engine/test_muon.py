"""Muon against PyTorch's own, which only takes matrices, and its other parameters against AdamW."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detr_d2.engine.muon import Muon, muon_groups, orthogonalized
from detr_d2.engine.optimizer import build_optimizer


@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 40, 24), (3, 32, 32)])
def test_orthogonalized(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalized(matrices) @ v.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.max() < 1.25
    # The smallest singular values of square matrices are almost zero.
    assert values.quantile(0.1) > 0.6
    assert_close(found, torch.diag_embed(values), rtol=0, atol=1e-4)
    assert orthogonalized(torch.zeros(shape)).count_nonzero() == 0
    rounded = orthogonalized(matrices, torch.bfloat16).float()
    assert 0 < (rounded - orthogonalized(matrices)).norm() < 0.03 * rounded.norm()


def test_mixed_precision(models, make_cfg):
    """Makes steps orthogonal in bfloat16; weights and averages stay in float32."""
    exact, rounded = models(), models()
    make_steps(exact, build(make_cfg, exact))
    optimizer = build_optimizer(make_cfg(*OPTIONS, "SOLVER.AMP.ENABLED", True), rounded)
    make_steps(rounded, optimizer)
    for name in MATRICES:
        p, q = exact.get_parameter(name), rounded.get_parameter(name)
        assert q.dtype == optimizer.state[q]["momentum_buffer"].dtype == torch.float32
        assert 0 < (p - q).abs().max() < 1e-3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3, groups=32))
        self.attention = nn.MultiheadAttention(32, 2)
        self.query_embed = nn.Embedding(20, 32)
        self.class_embed = nn.Linear(32, 20)
        self.bbox_embed = nn.Linear(32, 4)


MATRICES = {"backbone.1.weight": 1, "attention.in_proj_weight": 3, "attention.out_proj.weight": 1}


OPTIONS = ("SOLVER.OPTIMIZER", "MUON", "SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.1)


def build(make_cfg, model, optimizer="MUON"):
    return build_optimizer(make_cfg(*OPTIONS, "SOLVER.OPTIMIZER", optimizer), model)


def make_steps(model, optimizer, count=3, first=0):
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.fixture
def models():
    """Return a function that makes equal models."""

    def make():
        torch.manual_seed(0)
        return Net()

    return make


def test_hidden_layers_get_muon(models, make_cfg):
    model = models()
    groups = build(make_cfg, model).param_groups
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: x["stacked"] for x in groups if "stacked" in x for p in x["params"]}
    assert found == MATRICES
    assert sorted(names[p] for x in groups for p in x["params"]) == sorted(names.values())
    rates = {names[p]: x["lr"] for x in groups for p in x["params"]}
    assert rates["backbone.1.weight"] == rates["backbone.0.weight"] == pytest.approx(0.001)
    assert rates["attention.in_proj_weight"] == 0.01


def test_the_other_parameters_get_adamw(models, make_cfg):
    found, expected = models(), models()
    make_steps(found, build(make_cfg, found))
    make_steps(expected, build(make_cfg, expected, "ADAMW"))
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q) == (name not in MATRICES), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="a version of PyTorch without Muon")
def test_matrices_are_updated_as_by_pytorch(models, make_cfg):
    """Its iterations run in bfloat16: steps are compared by their distance."""
    model = models()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = {
        # One by one: those of query, key and value, and the filters as matrices.
        name: [nn.Parameter(x.clone()) for x in before[name].flatten(1).chunk(count)]
        for name, count in MATRICES.items()
    }
    make_steps(model, build(make_cfg, model))
    for name, parts in expected.items():
        rate = 0.001 if "backbone" in name else 0.01
        oracle = torch.optim.Muon(parts, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        shadow = models()
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in shadow.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            # Clipped over the full model.
            nn.utils.clip_grad_norm_(shadow.parameters(), 0.1)
            gradient = shadow.get_parameter(name).grad.flatten(1)
            for part, x in zip(parts, gradient.chunk(len(parts)), strict=True):
                part.grad = x.clone()
            oracle.step()
        moved = torch.cat([x.detach() for x in parts]) - before[name].flatten(1)
        found = model.get_parameter(name).detach().flatten(1) - before[name].flatten(1)
        assert (found - moved).norm() < 0.03 * moved.norm(), name


def test_a_resumed_run(models, make_cfg):
    straight, resumed = models(), models()
    make_steps(straight, build(make_cfg, straight), count=4)
    optimizer = build(make_cfg, resumed)
    make_steps(resumed, optimizer, count=2)
    state = optimizer.state_dict()
    optimizer = build(make_cfg, resumed)
    optimizer.load_state_dict(state)
    make_steps(resumed, optimizer, count=2, first=2)
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_without_a_gradient_stay(models):
    model = models()
    optimizer = Muon(muon_groups([{"params": list(model.parameters()), "lr": 0.1, "name": "all"}], model), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="closures"):
        optimizer.step(lambda: None)
