"""Compiled modules, for inference and for training alike."""

import copy
import logging
import pickle

import pytest
import torch
from detectron2.utils.env import TORCH_VERSION
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from detr_d2.modeling import compilation
from detr_d2.modeling.compilation import CompiledForward, Compiler


class Layer(nn.Module):
    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.inner = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.factor


class Block(nn.Module):
    """A module of another class."""

    def __init__(self):
        super().__init__()
        self.inner = Layer(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    return counter


def compiled(*modules: nn.Module, **arguments) -> list[nn.Module]:
    compiler = Compiler("Computing", **arguments)
    for module in modules:
        module.forward = CompiledForward(module, compiler)
    return list(modules)


def test_modules_of_a_class_share_their_code(counter):
    layers = compiled(Layer(2.0), Layer(3.0))
    for size in (3, 4, 5):
        for layer in layers:
            assert_close(layer(torch.ones(size)), torch.full((size,), layer.factor.item()))
    # Before 2.5 each had its own.
    assert counter.frame_count == (1 if TORCH_VERSION >= (2, 5) else 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_compute_with_their_own_parameters(counter, copied):
    (layer,) = compiled(Layer(2.0))
    x = torch.ones(3)
    layer(x)
    other = copied(layer)
    with torch.no_grad():
        other.factor.fill_(5.0)
    assert_close(other(x), 5 * x)
    assert_close(layer(x), 2 * x)
    other(x).sum().backward()
    assert layer.factor.grad is None
    assert other.factor.grad == 3
    assert other.forward.module is other
    assert other.forward.works


def test_parameters_keep_their_names(counter):
    assert list(compiled(Block())[0].state_dict()) == ["inner.factor"]


def test_failures_of_compiling(monkeypatch, caplog):
    """There is one warning; compiled modules stay compiled, and others are not tried again."""
    attempts = []

    def backend(graph, example_inputs):
        attempts.append(len(attempts))
        if len(attempts) == 2:
            raise RuntimeError("no compiler\nmore words")
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", backend)
    layer, block, other = compiled(Layer(2.0), Block(), nn.Linear(3, 3))
    x = torch.ones(3)
    with caplog.at_level(logging.WARNING, logger="detr_d2"):
        for _ in range(2):
            assert_close(layer(x), 2 * x)
            assert_close(block(x), 3 * x)
            other(x)
    assert attempts == [0, 1]
    assert [module.forward.works for module in (layer, block, other)] == [True, False, None]
    (message,) = [x.getMessage() for x in caplog.records if x.name.startswith("detr_d2")]
    assert message.startswith("Computing without torch.compile, which failed: ")
    assert "no compiler" in message
    assert "more words" not in message


def test_only_certain_failures_are_handled(monkeypatch, caplog):
    def backend(graph, example_inputs):
        def run(*inputs):
            raise KeyError("while it runs")

        return run

    monkeypatch.setattr(compilation, "BACKEND", backend)
    x = torch.ones(3)
    (layer,) = compiled(Layer(2.0), failures=torch._dynamo.exc.TorchDynamoException)
    with pytest.raises(KeyError, match="while it runs"):
        layer(x)
    (layer,) = compiled(Layer(2.0))
    assert_close(layer(x), 2 * x)
    assert "KeyError 'while it runs'" in caplog.text


def test_errors_of_the_caller_are_raised(counter, caplog):
    (layer,) = compiled(Layer())
    with pytest.raises(TypeError):
        layer("text", "and more")
    assert not caplog.records


def test_hooks_are_called(counter):
    """Compiled code runs again when they are removed."""
    (layer,) = compiled(Layer(2.0))
    seen = []
    with layer.inner.register_forward_hook(lambda *_: seen.append(1)):
        layer(torch.ones(3))
    assert seen == [1]
    assert not counter.frame_count
    layer(torch.ones(3))
    assert counter.frame_count


def test_modules_within_compiled_modules(counter):
    """The outer code contains them."""
    block = Block()
    compiled(block.inner)
    compiled(block)
    assert_close(block(torch.ones(3)), torch.full((3,), 3.0))
    assert counter.frame_count == 1
    assert block.forward.works
    assert block.inner.forward.works is None
