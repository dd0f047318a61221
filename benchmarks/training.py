"""A training step: forward, losses, backward, clipping, optimizer."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from benchmarks import original
from benchmarks.contestants import Contestant
from benchmarks.inputs import random_batch
from benchmarks.models import (
    PRECISIONS,
    THEIRS,
    autocast,
    build_original,
    build_ours,
    build_transformers,
    make_config,
)
from benchmarks.timing import Runner
from detr_d2.engine import build_optimizer
from detr_d2.engine.step import TrainingStep
from detr_d2.modeling.activation_checkpoints import PARTS, checkpoint_activations
from detr_d2.modeling.compilation import compile_for_training

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""Of the losses, relative."""
# transformers leaves the decoder's last norm out of the auxiliary losses. It starts as the identity, which makes the
# first step's losses equal; after that they are not.
_TRANSFORMERS_TOLERANCE = 1e-3
_STARTS = {**THEIRS, **{name: (name, True) for name in ("ours", "ours-checkpoints", "ours-compiled")}}
VARIANTS = {
    f"{start}{suffix}": (library, precision, keeps)
    for start, (library, keeps) in _STARTS.items()
    for suffix, precision in PRECISIONS.items()
    if precision in TOLERANCES
}
"""By name: the library, the precision of autocast, and whether its process keeps freed memory."""
# How much smaller every second image is than the first, so that batches are padded, as they are in training.
_SMALLER = 0.95
_CHECKED_STEPS = 2


@dataclass(frozen=True)
class Training:
    """A step with random images, every second one a little smaller than the first."""

    names: tuple[str, ...]
    model: str = "box"
    size: tuple[int, int] = (640, 850)
    batch: int = 2
    objects: int = 7
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        size = f"{self.size[0]} x {self.size[1]}"
        return f"training step: {self.model}, {size}, batch {self.batch}, {self.objects} objects an image"

    @property
    def images(self) -> int:
        return self.batch

    def without_chance(self) -> "Training":
        """Without dropout."""
        return replace(self, options=(*self.options, "MODEL.DETR.DROPOUT", "0.0"))

    def build(self, name: str) -> Contestant:
        library, precision, keeps = VARIANTS[name]
        cfg = make_config(self.model, self.options, self.device)
        height, width = self.size
        sizes = [(height, width), (int(_SMALLER * height), int(_SMALLER * width))]
        sizes = [sizes[i % 2] for i in range(self.batch)]
        batch = random_batch(sizes, cfg.MODEL.DETR.NUM_CLASSES, self.objects, masks=cfg.MODEL.MASK_ON)
        step = _LIBRARIES[library](cfg, batch, precision)

        def outputs() -> dict[str, Tensor]:
            losses = torch.tensor([step() for _ in range(_CHECKED_STEPS)], dtype=torch.float64)
            # Of logarithms a small difference is the relative one.
            return {f"logarithms of the losses of {_CHECKED_STEPS} steps": losses.log()}

        tolerance = TOLERANCES[precision]
        if library == "transformers":
            tolerance = max(tolerance, _TRANSFORMERS_TOLERANCE)
        return Contestant(Runner(step), outputs, tolerance, keeps)


def _ours(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    """As our trainer does it."""
    model = build_ours(cfg).train()
    if cfg.SOLVER.COMPILE:
        compile_for_training(model.detr.transformer)
    checkpoint_activations(model.detr, cfg.SOLVER.ACTIVATION_CHECKPOINTS)
    dtype = None if precision == "float32" else getattr(torch, precision)
    trainer = TrainingStep(
        model, itertools.repeat(batch), build_optimizer(cfg, model), dtype=dtype, parts=cfg.SOLVER.ACCUMULATE
    )
    trainer.iter = 0

    def step() -> float:
        with EventStorage() as storage:
            trainer.run_step()
        return storage.latest()["total_loss"][0]

    return step


def _ours_with_checkpoints(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    cfg.SOLVER.ACTIVATION_CHECKPOINTS = tuple(PARTS)
    return _ours(cfg, batch, precision)


def _ours_compiled(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    cfg.SOLVER.COMPILE = True
    return _ours(cfg, batch, precision)


def _python_detr(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    model = build_original(cfg).train()
    criterion = original.build_criterion(cfg).to(cfg.MODEL.DEVICE)

    def compute_loss() -> Tensor:
        samples, targets = original.samples(batch, cfg), original.targets(batch, cfg.MODEL.DEVICE)
        with autocast(cfg, precision):
            outputs = model(samples)
        losses = criterion(original.to_float32(outputs), targets)
        return sum(losses[name] * weight for name, weight in criterion.weight_dict.items())

    return _their_step(cfg, model, compute_loss)


def _transformers(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    model = build_transformers(cfg).train()
    # The library trains the early layers of timm's backbones, too; the original, and ours, do not.
    for name, parameter in model.named_parameters():
        if "backbone" in name and not any(layer in name for layer in ("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)

    def compute_loss() -> Tensor:
        samples = original.samples(batch, cfg)
        labels = [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in original.targets(batch, cfg.MODEL.DEVICE)]
        with autocast(cfg, precision):
            return model(pixel_values=samples.tensors, pixel_mask=(~samples.mask).long(), labels=labels).loss

    return _their_step(cfg, model, compute_loss)


def _their_step(cfg: CfgNode, model: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], float]:
    """As the original's training loop does it."""
    solver = cfg.SOLVER
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    groups = [
        {"params": [x for name, x in trained.items() if "backbone" not in name]},
        {
            "params": [x for name, x in trained.items() if "backbone" in name],
            "lr": solver.BASE_LR * solver.BACKBONE_MULTIPLIER,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)

    def step() -> float:
        loss = compute_loss()
        value = loss.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), solver.CLIP_GRADIENTS.CLIP_VALUE)
        optimizer.step()
        return value

    return step


_LIBRARIES = {
    "ours": _ours,
    "ours-checkpoints": _ours_with_checkpoints,
    "ours-compiled": _ours_compiled,
    "python-detr": _python_detr,
    "transformers": _transformers,
}
