"""Two processes on the CPU against one with the joint batch."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.testing import assert_close

from detr_d2.engine.launching import leave_process_group
from detr_d2.engine.trainer import distribute, share_buffers
from detr_d2.modeling import compilation
from detr_d2.modeling.activation_checkpoints import checkpoint_activations
from detr_d2.modeling.compilation import can_compile_training, compile_for_training
from detr_d2.modeling.meta_arch import Detr

MASKS = ("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8)
SMALL = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2)
SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer")
MULTI_SCALE = ("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"])
TRAINING_QUERIES = (
    *("MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.DENOISING.GROUPS", 2, "MODEL.DETR.CLASS_LOSS", "matchability"),
    *("MODEL.DETR.DENOISING.BOX_NOISE", 0.0, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0),
    *("MODEL.DETR.DENSE_WEIGHT", 0.3),
)
FROZEN = ("MODEL.DETR.FROZEN_WEIGHTS", "box.pth")


def checkpoint_both(network: nn.Module) -> None:
    checkpoint_activations(network, ("backbone", "transformer"))


def compile_transformer(network: nn.Module) -> None:
    compilation.BACKEND = CompileCounterWithBackend("aot_eager")
    compile_for_training(network.transformer)


class Case(NamedTuple):
    """A batch of one image per process and accumulation step."""

    counts: list[int]
    """Numbers of objects: of the images of the first process, then of those of the second."""
    options: tuple = ()
    masks: bool = False
    prepare: Callable[[nn.Module], None] | None = None
    graphs: int = 0
    """Number of compiled pieces of code."""


# Also when one process has no object: it does not hang, and has every gradient.
JOINT_BATCH = {
    "objects in both": Case([3, 1]),
    "objects in one": Case([3, 0]),
    "no objects": Case([0, 0]),
    "masks, objects in one": Case([3, 0], (*MASKS, *SMALL), masks=True),
    "masks, frozen boxes, no objects": Case([0, 0], (*MASKS, *SMALL, *FROZEN), masks=True),
    "accumulation, checkpoints": Case([2, 1, 2, 1], prepare=checkpoint_both),
    "training queries, objects in one": Case([3, 0], (*SMCA, *SMALL, *TRAINING_QUERIES)),
    "multi-scale SMCA, objects in one": Case([3, 0], (*MULTI_SCALE, *SMALL, *TRAINING_QUERIES)),
    # The cross entropy alone, since losses per object are divided by at least one object in each process, as in the
    # original.
    "training queries, masks, no objects": Case(
        [0, 0],
        (*MASKS, *SMALL, *TRAINING_QUERIES, "MODEL.DETR.CLASS_LOSS", "softmax", "MODEL.DETR.DENSE_WEIGHT", 0.0),
        masks=True,
    ),
    "training queries, accumulation, checkpoints": Case([2, 0, 1, 2], TRAINING_QUERIES, prepare=checkpoint_both),
}
COMPILED = {
    # One piece of code per layer.
    "accumulation, compiled": Case(
        [2, 1, 2, 1],
        ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1),
        prepare=compile_transformer,
        graphs=2,
    )
}


def train_shares(problems: list[tuple[Case, CfgNode, dict, list[list[dict]]]], folder: Path) -> None:
    """Save the losses and gradients of this process's share of every batch."""
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    results = []
    for case, cfg, state, shares in problems:
        model = Detr(cfg)
        model.load_state_dict(state)
        if case.prepare is not None:
            case.prepare(model.detr)
        model = distribute(model.train())
        graphs = counters["stats"]["unique_graphs"]
        losses = []
        for step, x in enumerate(shares[rank], start=1):
            with model.no_sync() if step < len(shares[rank]) else nullcontext():
                losses.append(model([x]))
                sum(losses[-1].values()).backward()
        gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
        graphs = counters["stats"]["unique_graphs"] - graphs
        results.append({"losses": losses, "gradients": gradients, "graphs": graphs})
    torch.save(results, folder / f"gradients_{rank}.pth")


def differ_and_share(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        norm = distribute(torch.nn.BatchNorm2d(2).train())
    rank = torch.distributed.get_rank()
    for _ in range(2):
        norm(torch.full((1, 2, 3, 3), rank + 1.0))
    own = norm.module.running_mean.clone()
    share_buffers(norm)
    torch.save({"own": own, **norm.module.state_dict()}, folder / f"statistics_{rank}.pth")


def run_all(problems: list[tuple[Case, CfgNode, dict, list[list[dict]]]], folder: Path) -> None:
    differ_and_share(folder)
    train_shares(problems, folder)
    leave_process_group()


@pytest.mark.slow
def test_two_processes(make_cfg, make_model, make_inputs, tmp_path):
    """Gradients are those of the joint batch, and buffers can be shared.

    All cases are computed by the same two processes, which take long to start.
    """
    cases = JOINT_BATCH | (COMPILED if can_compile_training() else {})
    problems, expected = [], []
    for case in cases.values():
        options = ("MODEL.DETR.DROPOUT", 0.0, *case.options)
        model = make_model(*options).train()
        inputs = make_inputs([(64, 64)] * len(case.counts), case.counts, masks=case.masks)
        steps = len(inputs) // 2
        problems.append((case, make_cfg(*options), model.state_dict(), [inputs[:steps], inputs[steps:]]))
        # The numbers of objects of the first images of both processes are averaged, and those of the second images.
        # Their gradients are summed in the parameters.
        losses = [model([inputs[i], inputs[i + steps]]) for i in range(steps)]
        for x in losses:
            sum(x.values()).backward()
        expected.append((losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))

    launch(run_all, 2, dist_url="auto", args=(problems, tmp_path))
    check_statistics(tmp_path)
    ranks = [torch.load(tmp_path / f"gradients_{rank}.pth", weights_only=True) for rank in (0, 1)]
    for name, case, (losses, gradients), *found in zip(cases, cases.values(), expected, *ranks, strict=True):
        for x in found:
            assert x["graphs"] == case.graphs, name
            assert x["gradients"].keys() == gradients.keys()
            for parameter, gradient in gradients.items():
                scale = gradient.abs().max().clamp(min=1e-3)
                message = f"{name}: {parameter}"
                assert_close(x["gradients"][parameter] / scale, gradient / scale, rtol=0, atol=2e-4, msg=message)
        for joint, *shares in zip(losses, *(x["losses"] for x in found), strict=True):
            for key, loss in joint.items():
                mean = (shares[0][key] + shares[1][key]) / 2
                assert_close(mean, loss, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


def check_statistics(folder: Path) -> None:
    """Buffers are shared on request, not before every forward pass, so that all evaluate the first one's checkpoint."""
    for rank in (0, 1):
        state = torch.load(folder / f"statistics_{rank}.pth", weights_only=True)
        # With momentum 0.1, from zero: 0.1 x, and 0.9 of it + 0.1 x.
        assert_close(state["own"], torch.full((2,), 0.19 * (rank + 1)))
        assert_close(state["running_mean"], torch.full((2,), 0.19))
        assert state["num_batches_tracked"] == 2
