#!/usr/bin/env python
"""How near to the optimum the matchers come, and how long they take."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from detr_d2.criterion.matching import HungarianMatcher, Matcher, MatchingCost, SinkhornMatcher
from detr_d2.structures import Output, Targets
from detr_d2.utils.errors import UserError

CLASSES = 80


def sampled_permutations(cost: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rounding of the JAX DETR: the cheapest of 100 permutations that are drawn after the transport plan."""
    plans, problems, _, _ = SinkhornMatcher(max_iterations=1000, momentum_from=100).transport(cost, counts)
    matches = torch.full_like(problems[:, :, 0], -1, dtype=torch.int64)
    for plan, problem, match, count in zip(plans.exp(), problems, matches, counts * len(cost), strict=True):
        values = torch.rand(plan.shape[1], 100).sort(0).values
        # Objects that pad to a square come last, and share what queries have left.
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
EXAMPLES = """
examples:
  python tools/benchmark_matchers.py gap --queries 100 --annotations ../shared/data/coco/annotations/*.json
  python tools/benchmark_matchers.py time --device cuda
"""


def uniform(queries: int, objects: int) -> Tensor:
    return torch.rand(queries, objects)


def normal(queries: int, objects: int) -> Tensor:
    return torch.randn(queries, objects)


def untrained(queries: int, objects: int) -> Tensor:
    """Queries that know nothing: classes and boxes at random."""
    logits = torch.randn(queries, CLASSES + 1)
    return detr_cost(logits, random_boxes(queries), random_boxes(objects), random_labels(objects))


def trained(queries: int, objects: int) -> Tensor:
    return near(queries, random_boxes(objects), random_labels(objects))


def crowd(queries: int, objects: int) -> Tensor:
    """Objects of one class, nearly in one place."""
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]) + 0.03 * torch.randn(objects, 4)
    return near(queries, boxes, torch.full((objects,), 3))


def near(queries: int, boxes: Tensor, labels: Tensor) -> Tensor:
    """Queries more or less where an object is, half of which name its class with more or less confidence."""
    source = torch.randint(len(labels), (queries,))
    spread = 0.1 * 10 ** (-2 * torch.rand(queries, 1))
    logits = torch.randn(queries, CLASSES + 1)
    named = torch.where(torch.rand(queries) < 0.5, labels[source], CLASSES)
    logits[torch.arange(queries), named] += 10 * torch.rand(queries)
    return detr_cost(logits, (boxes[source] + spread * torch.randn(queries, 4)).clamp(0.01, 0.99), boxes, labels)


def random_boxes(count: int) -> Tensor:
    return torch.cat((torch.rand(count, 2), 0.02 + 0.5 * torch.rand(count, 2) ** 2), -1)


def random_labels(count: int) -> Tensor:
    return torch.randint(CLASSES, (count,))


def detr_cost(logits: Tensor, predicted: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    targets = Targets(labels[None], boxes[None], (len(labels),))
    return MatchingCost()(Output(logits[None, None], predicted[None, None]), targets)[0, 0]


def real(path: Path, queries: int) -> list[Tensor]:
    """Queries near the objects of every image of a COCO annotation file."""
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
            problems.append(near(queries, boxes, torch.tensor([x["category_id"] % CLASSES for x in objects])))
    return problems


def stack(problems: list[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    counts = tuple(x.shape[1] for x in problems)
    return torch.stack([torch.nn.functional.pad(x, (0, max(counts) - x.shape[1])) for x in problems])[None], counts


def totals(problems: list[Tensor], matches: Tensor) -> Tensor:
    return torch.stack(
        [x.double()[m[: x.shape[1]], range(x.shape[1])].sum() for x, m in zip(problems, matches[0], strict=True)]
    )


def print_gaps(name: str, problems: list[Tensor]) -> None:
    """How much dearer than the optimum, in percent of the optimum and of what a random matching costs more."""
    cost, counts = stack(problems)
    least = totals(problems, HungarianMatcher()(cost, counts))
    random = torch.stack([x.double().mean() * x.shape[1] for x in problems])
    for matcher_name, matcher in MATCHERS.items():
        more = totals(problems, matcher(cost, counts)) - least
        relative, to_random = 100 * more / least.abs(), 100 * more / (random - least).clamp(min=1e-9)
        optimal = (more <= 1e-6 * least.abs()).double().mean()
        figures = (relative.mean(), relative.max(), to_random.mean(), to_random.max(), 100 * optimal)
        print(f"| {name} | {len(problems)} | {matcher_name} | " + " | ".join(f"{x:.3f}" for x in figures) + " |")


def gap(args: argparse.Namespace) -> None:
    print("| costs | problems | matcher | mean gap % | largest | to random, mean % | largest | optimal % |")
    print("|---|---|---|---|---|---|---|---|")
    for make in (uniform, normal, untrained, trained, crowd):
        sizes = torch.randint(1, args.objects + 1, (args.problems // 5,)).tolist()
        print_gaps(make.__name__, [make(args.queries, objects) for objects in sizes])
    for path in args.annotations:
        print_gaps(path.stem, real(path, args.queries))


def milliseconds(call: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    once()
    return median(once() for _ in range(repeats))


def time_matchers(args: argparse.Namespace) -> None:
    names = ("HungarianMatcher", "SinkhornMatcher")
    print("| layers x images | queries | objects | " + " | ".join(f"{name} ms" for name in names) + " |")
    print("|---|---|---|---|---|")
    device = torch.device(args.device)
    for layers, batch, queries, objects in (
        (1, 2, 100, 7), (6, 2, 100, 7), (6, 2, 100, 60), (6, 8, 100, 20), (6, 8, 300, 60), (6, 32, 300, 60),
    ):  # fmt: skip
        problems = [trained(queries, objects) for _ in range(layers * batch)]
        cost = torch.stack(problems).view(layers, batch, queries, objects).to(device)
        counts = (objects,) * batch
        figures = [milliseconds(lambda: MATCHERS[name](cost, counts), device, args.repeats) for name in names]  # noqa: B023
        print(f"| {layers} x {batch} | {queries} | {objects} | " + " | ".join(f"{x:.2f}" for x in figures) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("gap", "time"), help="gap to the optimum, or time of a call")
    parser.add_argument("--problems", type=int, default=1000, help="random cost matrices (default: 1000)")
    parser.add_argument("--queries", type=int, default=100, help="(default: 100)")
    parser.add_argument("--objects", type=int, default=60, help="the most in an image (default: 60)")
    parser.add_argument("--annotations", type=Path, nargs="*", default=[], help="COCO files with real objects")
    parser.add_argument("--device", default="cpu", help="of the times (default: cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="of a call, for the median time (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    try:
        gap(args) if args.what == "gap" else time_matchers(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
