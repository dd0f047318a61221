"""Benchmarks of training: a whole step, and the criterion alone on random predictions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from benchmarks import models, ours
from benchmarks.comparison import Case, Implementation
from benchmarks.measuring import Runner

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""Relative tolerances for the losses."""
# transformers leaves the decoder's last norm out of the auxiliary losses. It starts as the identity, so that the losses
# of the first step are equal; later ones are not.
_TRANSFORMERS_TOLERANCE = 1e-3
_STARTS = {**models.REFERENCES, **{name: (name, True) for name in ("ours", "ours-checkpoints", "ours-compiled")}}
VARIANTS = {
    f"{start}{suffix}": (library, precision, keeps)
    for start, (library, keeps) in _STARTS.items()
    for suffix, precision in models.PRECISIONS.items()
    if precision in TOLERANCES
}
"""Variants by name: the library, the precision of autocast, and True if its process keeps freed memory."""
# Size of every second image relative to the first, so that batches are padded, as they are in training.
_SMALLER = 0.95
_CHECKED_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Training(Case):
    """A step, with dropout: forward, losses, backward, clipping, optimizer."""

    model: str = "box"
    size: tuple[int, int] = (640, 850)
    batch: int = 2
    objects: int = 7
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        size = f"{self.size[0]} x {self.size[1]}"
        return f"training step: {self.model}, {size}, batch {self.batch}, {self.objects} objects per image"

    def deterministic(self) -> "Training":
        return replace(self, options=(*self.options, "MODEL.DETR.DROPOUT", "0.0"))

    def build(self, name: str) -> Implementation:
        library, precision, keeps = VARIANTS[name]
        cfg = ours.make_config(self.model, self.options, self.device)
        height, width = self.size
        sizes = [(height, width), (int(_SMALLER * height), int(_SMALLER * width))]
        sizes = [sizes[i % 2] for i in range(self.batch)]
        batch = models.random_batch(sizes, cfg.MODEL.DETR.NUM_CLASSES, self.objects, masks=cfg.MODEL.MASK_ON)
        step = _STEPS[library](cfg, batch, precision)

        def outputs() -> dict[str, Tensor]:
            losses = torch.tensor([step() for _ in range(_CHECKED_STEPS)], dtype=torch.float64)
            # A small difference of logarithms is the relative one.
            return {f"logarithms of the losses of {_CHECKED_STEPS} steps": losses.log()}

        tolerance = TOLERANCES[precision]
        if library == "transformers":
            tolerance = max(tolerance, _TRANSFORMERS_TOLERANCE)
        return Implementation(Runner(step), outputs, tolerance, keeps)


def _our_step(cfg: CfgNode, batch: list[dict], precision: str, **settings: bool) -> Callable[[], float]:
    model = ours.build(cfg, models.build_original(cfg).state_dict())
    return ours.make_training_step(cfg, model, batch, precision, **settings)


def _original_step(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    model = models.build_original(cfg)
    criterion = models.build_original_criterion(cfg)

    def compute_loss() -> Tensor:
        samples, targets = models.original_samples(batch, cfg), models.original_targets(batch, cfg)
        with models.autocast(cfg, precision):
            outputs = model(samples)
        losses = criterion(models.to_float32(outputs), targets)
        return sum(losses[name] * weight for name, weight in criterion.weight_dict.items())

    return _optimized_step(cfg, model, compute_loss)


def _transformers_step(cfg: CfgNode, batch: list[dict], precision: str) -> Callable[[], float]:
    model = models.build_transformers(cfg)
    # The library trains the early layers of timm's backbones, too; the original and ours do not.
    for name, parameter in model.named_parameters():
        if "backbone" in name and not any(layer in name for layer in ("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)

    def compute_loss() -> Tensor:
        samples = models.original_samples(batch, cfg)
        labels = [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in models.original_targets(batch, cfg)]
        with models.autocast(cfg, precision):
            return model(pixel_values=samples.tensors, pixel_mask=(~samples.mask).long(), labels=labels).loss

    return _optimized_step(cfg, model, compute_loss)


def _optimized_step(cfg: CfgNode, model: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a function that does a step of the original's training loop and returns the loss."""
    solver = cfg.SOLVER
    model.train()
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


_STEPS = {
    "ours": _our_step,
    "ours-checkpoints": partial(_our_step, checkpoints=True),
    "ours-compiled": partial(_our_step, compiled=True),
    "python-detr": _original_step,
    "transformers": _transformers_step,
}

PARTS = ("matching", "losses", "gradients")
"""Parts of the criterion that are timed; each includes those before it."""


@dataclass(frozen=True, kw_only=True)
class Criterion(Case):
    """One of :data:`PARTS`, for all decoder layers."""

    part: str
    names: tuple[str, ...] = ("python-detr", "ours")
    batch: int = 16
    objects: int = 20
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"criterion: {self.part}, batch {self.batch}, {self.objects} objects per image"

    def build(self, name: str) -> Implementation:
        cfg = ours.make_config("box", self.options, self.device)
        batch = models.random_batch([(1, 1)] * self.batch, cfg.MODEL.DETR.NUM_CLASSES, self.objects)
        predictions = random_predictions(cfg, self.batch)
        matching, losses = CRITERIA[name](cfg, batch, *predictions)
        work, outputs = {
            "matching": (matching, lambda x: {"matches": _matched_queries(x)}),
            "losses": (losses, lambda x: {"loss, relative to 1000": x.detach().flatten() / 1000}),
            "gradients": (
                lambda: torch.autograd.grad(losses(), predictions),
                lambda x: dict(zip(("gradients of logits", "gradients of boxes"), x, strict=True)),
            ),
        }[self.part]
        # The caches of a process that has slept are cold, which would be half of so short a run.
        return Implementation(Runner(work, prepare=work), lambda: outputs(work()), 1e-4, name == "ours")


def random_predictions(cfg: CfgNode, batch: int) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of all decoder layers."""
    detr = cfg.MODEL.DETR
    shape = (detr.DEC_LAYERS if detr.DEEP_SUPERVISION else 1, batch, detr.NUM_OBJECT_QUERIES)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, detr.NUM_CLASSES + 1, generator=generator).to(cfg.MODEL.DEVICE)
    boxes = (0.1 + 0.4 * torch.rand(*shape, 4, generator=generator)).to(cfg.MODEL.DEVICE)
    return logits.requires_grad_(), boxes.requires_grad_()


def _original_criterion(cfg: CfgNode, batch: list[dict], logits: Tensor, boxes: Tensor):
    criterion = models.build_original_criterion(cfg)
    layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}

    def matching() -> list[list[tuple[Tensor, Tensor]]]:
        targets = models.original_targets(batch, cfg)
        return [criterion.matcher(layer, targets) for layer in layers]

    def losses() -> Tensor:
        by_name = criterion(outputs, models.original_targets(batch, cfg))
        return sum(by_name[name] * weight for name, weight in criterion.weight_dict.items())

    return matching, losses


CRITERIA = {"python-detr": _original_criterion, "ours": ours.make_criterion}


def _matched_queries(matches: Tensor | list[list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Return the query of each object, from our matches or from the original's pairs of indices."""
    if isinstance(matches, Tensor):
        return matches
    return torch.stack([torch.stack([queries[objects.argsort()] for queries, objects in x]) for x in matches])
