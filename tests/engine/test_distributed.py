"""Two processes on the CPU against one with the joint batch."""

import warnings

import pytest
import torch
from detectron2.engine import launch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.testing import assert_close

import detr_d2.modeling.compilation
from detr_d2.engine.trainer import distribute, share_buffers
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import can_compile_training, compile_for_training
from detr_d2.modeling.meta_arch import Detr


def train_one_batch(cfg, state, shares, folder):
    """In each process: the gradients and the losses of its share of the batch."""
    torch.set_num_threads(1)
    model = Detr(cfg)
    model.load_state_dict(state)
    model = distribute(model.train())
    rank = torch.distributed.get_rank()
    losses = model(shares[rank])
    sum(losses.values()).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.save({"gradients": gradients, "losses": losses}, folder / f"{rank}.pth")


@pytest.mark.parametrize("counts", [[3, 1], [3, 0], [0, 0]], ids=str)
def test_gradients_of_the_joint_batch(make_cfg, make_model, make_inputs, tmp_path, counts):
    """Edge case C30: also when one rank has no object; no hang, and every gradient is there."""
    options = ("MODEL.DETR.DROPOUT", 0.0)
    model = make_model(*options).train()
    inputs = make_inputs([(64, 64), (64, 64)], counts)
    joint = model(inputs)
    sum(joint.values()).backward()

    shares = [[x] for x in inputs]
    arguments = (make_cfg(*options), model.state_dict(), shares, tmp_path)
    launch(train_one_batch, 2, dist_url="auto", args=arguments)
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    for name, p in model.named_parameters():
        if p.requires_grad:
            for rank in ranks:
                scale = p.grad.abs().max().clamp(min=1e-3)
                assert_close(rank["gradients"][name] / scale, p.grad / scale, rtol=0, atol=2e-4, msg=name)
    for name, loss in joint.items():
        assert_close((ranks[0]["losses"][name] + ranks[1]["losses"][name]) / 2, loss, rtol=1e-4, atol=1e-6)


def checkpoint_both(network):
    checkpoint_activations(network, ("backbone", "transformer"))


def compile_transformer(network):
    detr_d2.modeling.compilation.BACKEND = CompileCounterWithBackend("aot_eager")
    compile_for_training(network.transformer)


def train_one_share(cfg, state, shares, folder, prepare):
    """In each process: the gradients of its share of the batch, which it takes in two parts."""
    torch.set_num_threads(1)
    model = Detr(cfg)
    model.load_state_dict(state)
    prepare(model.detr)
    model = distribute(model.train())
    rank = torch.distributed.get_rank()
    with model.no_sync():
        sum(model(shares[rank][:1]).values()).backward()
    sum(model(shares[rank][1:]).values()).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.save({"gradients": gradients, "codes": counters["stats"]["unique_graphs"]}, folder / f"{rank}.pth")


@pytest.mark.parametrize(
    ("prepare", "options", "codes"),
    [
        pytest.param(checkpoint_both, (), 0, id="checkpoints"),
        pytest.param(
            compile_transformer,
            ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1),
            # A layer is in one piece.
            2,
            id="compiled",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not can_compile_training(), reason="compiles the backward pass too late"),
            ],
        ),
    ],
)
def test_two_parts_a_process(make_cfg, make_model, make_inputs, tmp_path, prepare, options, codes):
    """Together they have the gradients of four images, one after the other."""
    options = ("MODEL.DETR.DROPOUT", 0.0, *options)
    model = make_model(*options).train()
    inputs = make_inputs([(64, 64)] * 4, [2, 1, 2, 1])
    # In turn the first and the second images of both processes meet, whose numbers of objects are averaged. Their
    # gradients add up in the parameters.
    for i in (0, 1):
        sum(model([inputs[i], inputs[i + 2]]).values()).backward()
    arguments = (make_cfg(*options), model.state_dict(), [inputs[:2], inputs[2:]], tmp_path, prepare)
    launch(train_one_share, 2, dist_url="auto", args=arguments)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert found["codes"] == codes
        expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in found["gradients"].items():
            scale = expected[name].abs().max().clamp(min=1e-3)
            assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=2e-4, msg=name)


def differ_and_share(folder):
    warnings.simplefilter("error", FutureWarning)
    norm = distribute(torch.nn.BatchNorm2d(2).train())
    rank = torch.distributed.get_rank()
    for _ in range(2):
        norm(torch.full((1, 2, 3, 3), rank + 1.0))
    own = norm.module.running_mean.clone()
    share_buffers(norm)
    torch.save({"own": own, **norm.module.state_dict()}, folder / f"{rank}.pth")


def test_the_first_process_gives_its_statistics(tmp_path):
    """When it is asked, not before every pass. What is evaluated in all of them is then what its checkpoint holds."""
    launch(differ_and_share, 2, dist_url="auto", args=(tmp_path,))
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        # With momentum 0.1, from zero: 0.1 x, and 0.9 of it + 0.1 x.
        assert_close(state["own"], torch.full((2,), 0.19 * (rank + 1)))
        assert_close(state["running_mean"], torch.full((2,), 0.19))
        assert state["num_batches_tracked"] == 2
