"""Matching and losses alone, on random predictions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

from benchmarks import original
from benchmarks.contestants import Contestant
from benchmarks.inputs import random_batch
from benchmarks.models import make_config
from benchmarks.timing import Runner
from detr_d2.criterion import SetCriterion
from detr_d2.criterion.matching import MatchingCost, build_matcher
from detr_d2.structures import Output, Targets

NAMES = ("python-detr", "ours")
PARTS = ("matching", "losses", "gradients")
"""Each with those before it."""


@dataclass(frozen=True)
class Criterion:
    """One part of the criterion, for all decoder layers."""

    part: str
    names: tuple[str, ...] = NAMES
    batch: int = 16
    objects: int = 20
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"criterion: {self.part}, batch {self.batch}, {self.objects} objects an image"

    @property
    def images(self) -> int:
        return self.batch

    def without_chance(self) -> "Criterion":
        return self

    def build(self, name: str) -> Contestant:
        cfg = make_config("box", self.options, self.device)
        batch = random_batch([(1, 1)] * self.batch, cfg.MODEL.DETR.NUM_CLASSES, self.objects)
        work, outputs = _IMPLEMENTATIONS[name](cfg, batch, random_predictions(cfg, self.batch), self.part)
        # A process that has slept finds its caches cold, which would be half of so short a run.
        runner = Runner(work, prepare=work)
        return Contestant(runner, lambda: outputs(work()), 1e-4, name == "ours")


def random_predictions(cfg: CfgNode, batch: int) -> Output:
    detr = cfg.MODEL.DETR
    layers = detr.DEC_LAYERS if detr.DEEP_SUPERVISION else 1
    shape = (layers, batch, detr.NUM_OBJECT_QUERIES)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, detr.NUM_CLASSES + 1, generator=generator).to(cfg.MODEL.DEVICE)
    boxes = (0.1 + 0.4 * torch.rand(*shape, 4, generator=generator)).to(cfg.MODEL.DEVICE)
    return Output(logits.requires_grad_(), boxes.requires_grad_())


def _ours(cfg: CfgNode, batch: list[dict], predictions: Output, part: str):
    criterion = SetCriterion(cfg).to(cfg.MODEL.DEVICE)
    cost, matcher = MatchingCost(cfg), build_matcher(cfg)

    def targets() -> Targets:
        return Targets.from_instances([x["instances"] for x in batch], cfg.MODEL.DEVICE)

    def matching() -> Tensor:
        objects = targets()
        return matcher(cost(predictions, objects), objects.counts)

    def losses() -> Tensor:
        return sum(criterion(predictions, targets())[0].values())

    return _work(part, matching, losses, predictions, lambda matches: matches)


def _python_detr(cfg: CfgNode, batch: list[dict], predictions: Output, part: str):
    criterion = original.build_criterion(cfg).to(cfg.MODEL.DEVICE)
    layers = [
        {"pred_logits": logits, "pred_boxes": boxes}
        for logits, boxes in zip(predictions.logits, predictions.boxes, strict=True)
    ]
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}

    def matching() -> list[list[tuple[Tensor, Tensor]]]:
        targets = original.targets(batch, cfg.MODEL.DEVICE)
        return [criterion.matcher(layer, targets) for layer in layers]

    def losses() -> Tensor:
        found = criterion(outputs, original.targets(batch, cfg.MODEL.DEVICE))
        return sum(found[name] * weight for name, weight in criterion.weight_dict.items())

    def as_matches(indices: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
        """The query of each object."""
        return torch.stack([torch.stack([queries[objects.argsort()] for queries, objects in x]) for x in indices])

    return _work(part, matching, losses, predictions, as_matches)


def _work(part: str, matching: Callable, losses: Callable, predictions: Output, as_matches: Callable):
    """What is timed, and how its result is compared."""

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses(), predictions[:2])

    return {
        "matching": (matching, lambda x: {"matches": as_matches(x)}),
        "losses": (losses, lambda x: {"loss, relative to 1000": x.detach().flatten() / 1000}),
        "gradients": (gradients, lambda x: dict(zip(("gradients of logits", "gradients of boxes"), x, strict=True))),
    }[part]


_IMPLEMENTATIONS = {"ours": _ours, "python-detr": _python_detr}
