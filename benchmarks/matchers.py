"""Benchmark of matchers: how near to the optimum they come, and how long they take."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.ours import matching_cost
from detr_d2 import UserError
from detr_d2.criterion.matching import HungarianMatcher, Matcher, SinkhornMatcher

_CLASSES = 80
SIZES = ((1, 2, 100, 7), (6, 2, 100, 7), (6, 2, 100, 60), (6, 8, 100, 20), (6, 8, 300, 60), (6, 32, 300, 60))
"""Layers, batch, queries and objects that are timed."""


def sampled_permutations(cost: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Round as the JAX DETR does: the cheapest of 100 permutations that are sampled from the transport plan."""
    plans, problems, _, _ = SinkhornMatcher(max_iterations=1000, momentum_from=100).transport(cost, counts)
    matches = torch.full_like(problems[:, :, 0], -1, dtype=torch.int64)
    for plan, problem, match, count in zip(plans.exp(), problems, matches, counts * len(cost), strict=True):
        values = torch.rand(plan.shape[1], 100).sort(0).values
        # Objects that pad to a square come last, and share the mass that queries have left.
        padding = values[count:].mean(0) if count < len(values) else torch.zeros(100)
        left = (1 - plan[:count].sum(0)).clamp(min=0)
        order = (plan[:count].T @ values[:count] + left[:, None] * padding).argsort(0)[:count]
        match[:count] = order[:, problem[:count].gather(1, order).sum(0).argmin()]
    return matches.view(*cost.shape[:2], -1)


MATCHERS: dict[str, Matcher] = {
    "HungarianMatcher": HungarianMatcher(),
    "SinkhornMatcher": SinkhornMatcher(),
    "SinkhornMatcher, 1000 iterations": SinkhornMatcher(max_iterations=1000),
    "SinkhornMatcher, no swaps": SinkhornMatcher(swap_sweeps=0),
    "SinkhornMatcher, sampled permutations": sampled_permutations,
}


def _uniform(queries: int, objects: int) -> Tensor:
    return torch.rand(queries, objects)


def _normal(queries: int, objects: int) -> Tensor:
    return torch.randn(queries, objects)


def _untrained(queries: int, objects: int) -> Tensor:
    """Return costs of queries with random classes and boxes."""
    logits = torch.randn(queries, _CLASSES + 1)
    return matching_cost(logits, _random_boxes(queries), _random_labels(objects), _random_boxes(objects))


def _trained(queries: int, objects: int) -> Tensor:
    return _near(queries, _random_boxes(objects), _random_labels(objects))


def _crowd(queries: int, objects: int) -> Tensor:
    """Return costs of objects of one class, nearly in one place."""
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]) + 0.03 * torch.randn(objects, 4)
    return _near(queries, boxes, torch.full((objects,), 3))


def _near(queries: int, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return costs of queries near objects, half of which predict the object's class with varying confidence."""
    source = torch.randint(len(labels), (queries,))
    spread = 0.1 * 10 ** (-2 * torch.rand(queries, 1))
    logits = torch.randn(queries, _CLASSES + 1)
    predicted = torch.where(torch.rand(queries) < 0.5, labels[source], _CLASSES)
    logits[torch.arange(queries), predicted] += 10 * torch.rand(queries)
    return matching_cost(logits, (boxes[source] + spread * torch.randn(queries, 4)).clamp(0.01, 0.99), labels, boxes)


def _random_boxes(count: int) -> Tensor:
    return torch.cat((torch.rand(count, 2), 0.02 + 0.5 * torch.rand(count, 2) ** 2), -1)


def _random_labels(count: int) -> Tensor:
    return torch.randint(_CLASSES, (count,))


def _real(path: Path, queries: int) -> list[Tensor]:
    """Return costs of queries near the objects of every image of a COCO annotation file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"--annotations {path} can't be read as a COCO annotation file: {error}") from error
    problems = []
    for image in content["images"]:
        objects = [x for x in content["annotations"] if x["image_id"] == image["id"] and not x.get("iscrowd", 0)]
        if objects:
            boxes = torch.tensor([x["bbox"] for x in objects]) / torch.tensor([image["width"], image["height"]] * 2)
            boxes[:, :2] += boxes[:, 2:] / 2
            problems.append(_near(queries, boxes, torch.tensor([x["category_id"] % _CLASSES for x in objects])))
    return problems


def print_gaps(args: argparse.Namespace) -> None:
    """Print how much costlier than the optimum the matchings are, for random and real objects."""
    torch.manual_seed(args.seed)
    print("| costs | problems | matcher | mean gap % | largest | to random, mean % | largest | optimal % |")
    print("|---|---|---|---|---|---|---|---|")
    for make in (_uniform, _normal, _untrained, _trained, _crowd):
        sizes = torch.randint(1, args.objects + 1, (args.problems // 5,)).tolist()
        _print_gap(make.__name__[1:], [make(args.queries, objects) for objects in sizes])
    for path in args.annotations:
        _print_gap(path.stem, _real(path, args.queries))


def _print_gap(name: str, problems: list[Tensor]) -> None:
    """Print gaps in percent of the optimum, and of what a random matching costs more than the optimum."""
    counts = tuple(x.shape[1] for x in problems)
    cost = torch.stack([torch.nn.functional.pad(x, (0, max(counts) - x.shape[1])) for x in problems])[None]
    optimum = _totals(problems, HungarianMatcher()(cost, counts))
    random = torch.stack([x.double().mean() * x.shape[1] for x in problems])
    for matcher_name, matcher in MATCHERS.items():
        gap = _totals(problems, matcher(cost, counts)) - optimum
        relative, to_random = 100 * gap / optimum.abs(), 100 * gap / (random - optimum).clamp(min=1e-9)
        optimal = (gap <= 1e-6 * optimum.abs()).double().mean()
        statistics = (relative.mean(), relative.max(), to_random.mean(), to_random.max(), 100 * optimal)
        print(f"| {name} | {len(problems)} | {matcher_name} | " + " | ".join(f"{x:.3f}" for x in statistics) + " |")


def _totals(problems: list[Tensor], matches: Tensor) -> Tensor:
    return torch.stack(
        [x.double()[m[: x.shape[1]], range(x.shape[1])].sum() for x, m in zip(problems, matches[0], strict=True)]
    )


def print_times(args: argparse.Namespace) -> None:
    """Print the milliseconds of a call for several sizes."""
    torch.manual_seed(args.seed)
    names = ("HungarianMatcher", "SinkhornMatcher")
    print("| layers x images | queries | objects | " + " | ".join(f"{name} ms" for name in names) + " |")
    print("|---|---|---|---|---|")
    device = torch.device(args.device)
    for layers, batch, queries, objects in SIZES:
        problems = [_trained(queries, objects) for _ in range(layers * batch)]
        cost = torch.stack(problems).view(layers, batch, queries, objects).to(device)
        counts = (objects,) * batch
        times = [_milliseconds(lambda: MATCHERS[name](cost, counts), device, args.repeats) for name in names]  # noqa: B023
        print(f"| {layers} x {batch} | {queries} | {objects} | " + " | ".join(f"{x:.2f}" for x in times) + " |")


def _milliseconds(call: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    once()
    return median(once() for _ in range(repeats))
