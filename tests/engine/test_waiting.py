"""A training step waits for the device once: for the costs that the Hungarian matcher reads."""

import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.overrides import TorchFunctionMode

import detr_d2
from detr_d2.engine import build_optimizer
from detr_d2.engine.step import TrainingStep
from detr_d2.modeling.activation_checkpoints import checkpoint_activations

MASKS = ("MODEL.MASK_ON", True)
VARIANTS = {
    "DETR": (),
    "SMCA": ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
    "multi-scale SMCA": (
        *("MODEL.DETR.TRANSFORMER", "MultiScaleSmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]),
    ),
    "masks": MASKS,
    "batch-invariant": ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True),
    "per-image forward": ("MODEL.DETR.BATCH_INVARIANT_TRAINING", True, "MODEL.RESNETS.NORM", "GN"),
    "accumulation": ("SOLVER.ACCUMULATE", 2),
    "checkpoints": ("SOLVER.ACTIVATION_CHECKPOINTS", ("backbone", "transformer")),
}
# Functions that let the host wait for a GPU, or copy from the host to a GPU.
WAITING = {
    *("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "numpy", "tolist"),
    *("argwhere", "bincount", "masked_select", "new_tensor", "nonzero", "unique"),
}
PACKAGE = Path(detr_d2.__file__).parent
# It reads the tensors of the data loader, which are on the host.
OF_THE_LOADER = {"targets.py"}


@pytest.fixture
def make_step(make_cfg, make_model, make_inputs):
    """Return a function that makes the training step of a variant on a device, with losses logged every 20 steps."""

    def make(options: tuple, device: str = "cpu") -> TrainingStep:
        cfg = make_cfg("MODEL.DEVICE", device, *options)
        model = make_model("MODEL.DEVICE", device, *options).train()
        checkpoint_activations(model.detr, cfg.SOLVER.ACTIVATION_CHECKPOINTS)
        inputs = make_inputs([(64, 96), (48, 64), (64, 64)], [3, 0, 2], masks=True)
        for x in inputs:
            if device == "cuda":
                x["image"] = x["image"].pin_memory()
        step = TrainingStep(
            model, [inputs] * 3, build_optimizer(cfg, model), accumulation_steps=cfg.SOLVER.ACCUMULATE, log_period=20
        )
        step.iter = 0
        return step

    return make


class Waits(TorchFunctionMode):
    """Counter, by file of the package and name, of the calls that would make the host or a GPU wait for the other."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if name in WAITING or name == "to" or _index_waits(name, args):
            # Innermost first, after this one.
            files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_stack(sys._getframe(1))]
            own = [x for x in files if PACKAGE in x.parents]
            if name == "to":
                # Copies within functions of torch have no effect.
                waits = own[0] == files[0] and _copies_and_waits(args, kwargs or {})
            else:
                # AdamW counts its steps on the host if it is not fused.
                waits = files[0].parent.name != "optim"
            self.counts[own[0].name, name] += waits
        return function(*args, **(kwargs or {}))


def _copies_and_waits(args: tuple, kwargs: dict) -> bool:
    names_device = any(isinstance(x, torch.device | str) for x in (*args[1:], kwargs.get("device")))
    return names_device and not kwargs.get("non_blocking")


def _index_waits(name: str, args: tuple) -> bool:
    """Check for indices on the host, and for those whose number is not known."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(x, list) or getattr(x, "dtype", None) == torch.bool for x in indices)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_calls_that_wait(make_step, options):
    """Count the calls that would wait on a GPU; on the CPU nothing waits."""
    step = make_step(options)
    with EventStorage(), Waits() as waits:
        step.run_step()
    found = {key: count for key, count in waits.counts.items() if count and key[0] not in OF_THE_LOADER}
    steps = 2 if "SOLVER.ACCUMULATE" in options else 1
    # NumPy reads the costs on the host, where they were copied to.
    assert found == {("hungarian.py", "cpu"): steps, ("hungarian.py", "numpy"): steps}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_waiting_on_a_gpu(make_step, options, recwarn):
    step = make_step(options, "cuda")
    with EventStorage():
        step.run_step()
        step.iter = 1
        torch.cuda.synchronize()
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step.run_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [x for x in recwarn if "synchronizing CUDA operation" in str(x.message)]
    steps = 2 if "SOLVER.ACCUMULATE" in options else 1
    assert [Path(x.filename).name for x in waits] == ["hungarian.py"] * steps
