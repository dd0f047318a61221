"""Measure speed and memory, compared with the original code (package python-detr) and transformers' DETR."""

import argparse
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_d2 import UserError
from detr_d2.cli.arguments import take_options
from detr_d2.cli.command import exit_code
from detr_d2.utils.files import write_json

EXAMPLES = """
All implementations have the same random weights and get the same random images. First their results are compared:
float32 within 1e-4, lower precisions within what they lose; if they differ, nothing is timed. Then they take turns,
each in its own process, with the same number of threads, another one beginning each round; two rounds before that are
not counted. The columns of the table are

  median, fastest, slowest  milliseconds of a run
  speedup                   how many times as fast as the first: the median of the rounds' ratios; and their range
  of fastest                the same for the fastest runs alone, which a busy machine disturbs less
  of CPU time               the same for CPU time, which it disturbs least; meaningless with --workers
  difference                of the results from the first's: the largest of scores or boxes (relative to the image), or
                            the share of classes or pixels that differ
  memory, share             with --memory: what a run adds at its peak to a fresh process, or on the GPU

Implementations of inference and training are python-detr, transformers and ours, and with -bf16 at the end the same
under autocast. Of inference also those with -fp16, and what detr_d2.optimize_for_inference makes: ours-optimized and
ours-compiled, ours-optimized-bf16 and so on; and our model exported for all sizes (docs/EXPORT.md), which runs as
onnxruntime, onnxruntime-int8, openvino, openvino-bf16 and openvino-int8. Of training also ours-checkpoints, which
recomputes activations instead of keeping them, and ours-compiled (SOLVER.COMPILE). Of the criterion python-detr and
ours, of loading 'old recipe' and ours. The first is what the others are compared with.

NAME@FOLDER is an implementation of another checkout of this repository (git worktree add FOLDER REVISION), whose
process imports detr_d2 from there: ours@FOLDER ours compares a revision with this one.

Our processes keep the memory that they free (detr_d2.keep_freed_memory), as train_net.py does; the others' don't.
python-detr-kept and transformers-kept are the same libraries in processes that do, which shows what that alone gains.

KEY VALUE pairs change the config, and with it every implementation: MODEL.DETR.ENC_LAYERS 3.

examples, where "benchmark" is `detr-d2 benchmark`, `python -m benchmarks` or `python tools/benchmark.py`:
  the three that every change of the model should be measured with:
    benchmark inference --implementations python-detr ours ours-compiled-bf16
    benchmark training --memory
    benchmark criterion
  this revision compared with an older one, whose checkout is ../old:
    benchmark inference --implementations ours@../old ours python-detr
  runtimes of exported models:
    benchmark inference --implementations python-detr ours onnxruntime openvino openvino-bf16 openvino-int8
  batches, on a GPU:
    benchmark inference --model box dc5 --batch 1 8 32 --device cuda --json result.json
  masks, with the peak of memory:
    benchmark inference --model masks panoptic --implementations python-detr ours --memory
  real images from disk:
    DETECTRON2_DATASETS=../shared/data benchmark loading --workers 0 2
  models of several configs, which have different results:
    benchmark configs training --config-file smca_r50_type3 smca_ms_r50 --memory
  matchers, their gap to the optimum and their time:
    benchmark matchers gap --queries 100 --annotations ../shared/data/coco/annotations/*.json
    benchmark matchers time --device cuda
  training runs, AP over their iterations:
    benchmark convergence --config-file detr_shapes_cpu smca_shapes_cpu --iterations 3000 300
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code: 0, 1 after a mistake of the user, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["convergence"]:
        from benchmarks import convergence

        return convergence.main(words[1:])
    words, pairs = take_options(words)
    args = make_parser().parse_args(words)
    args.options = tuple(pairs)
    return exit_code(lambda: run(args))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all arguments except ``KEY VALUE`` pairs."""
    parser = argparse.ArgumentParser(
        "benchmark", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{inference,training,criterion,loading,configs,matchers,convergence}"
    )

    command = commands.add_parser("inference", help="from images to results")
    _add_model(command, models=("box", "dc5", "r101", "masks", "panoptic"), size=(800, 1066), batch=1)
    _add_shared(command, rounds=7)

    command = commands.add_parser("training", help="a step: forward, losses, backward, optimizer")
    _add_model(command, models=("box", "dc5", "r101", "masks"), size=(640, 850), batch=2)
    command.add_argument("--objects", nargs="+", type=int, default=[7], help="objects per image (default: 7)")
    _add_shared(command, rounds=5)

    command = commands.add_parser("criterion", help="matching and losses alone, on random predictions")
    command.add_argument("--batch", nargs="+", type=int, default=[16], help="images (default: 16)")
    command.add_argument("--objects", nargs="+", type=int, default=[20], help="objects per image (default: 20)")
    command.add_argument("--device", default="cpu", help="(default: cpu)")
    _add_shared(command, rounds=20)

    command = commands.add_parser("loading", help="reading and augmenting the images of DATASETS.TRAIN")
    command.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes (default: 0 2)")
    command.add_argument("--images", type=int, default=100, help="images per run (default: 100)")
    _add_shared(command, rounds=5, memory=False)

    command = commands.add_parser("configs", help="predictions or training steps of several configs")
    command.add_argument("work", choices=("inference", "training"), help="what is timed")
    command.add_argument("--config-file", nargs="+", required=True, metavar="CONFIG", help="files, or names of configs")
    command.add_argument(
        "--size", nargs=2, type=int, default=[800, 1066], metavar=("H", "W"), help="(default: 800 1066)"
    )
    command.add_argument("--batch", nargs="+", type=int, default=[1], help="images (default: 1)")
    command.add_argument("--device", default="cpu", help="(default: cpu)")
    _add_shared(command, rounds=5, implementations=False)

    _add_matchers(commands.add_parser("matchers", help="gap to the optimum and time of our matchers"))
    # `main` passes its arguments to a parser of its own: it trains as `detr-d2 train` does.
    commands.add_parser("convergence", help="AP over the iterations of several configs", add_help=False)
    return parser


def _add_model(command: argparse.ArgumentParser, models: tuple[str, ...], size: tuple[int, int], batch: int) -> None:
    command.add_argument("--model", nargs="+", choices=models, default=["box"], help="(default: box)")
    command.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), help=f"default: {size[0]} {size[1]}"
    )
    command.set_defaults(default_size=size)
    command.add_argument("--batch", nargs="+", type=int, default=[batch], help=f"images (default: {batch})")
    command.add_argument("--device", default="cpu", help="(default: cpu)")


def _add_shared(
    command: argparse.ArgumentParser, rounds: int, memory: bool = True, implementations: bool = True
) -> None:
    if implementations:
        command.add_argument(
            "--implementations",
            nargs="+",
            metavar="NAME",
            help="see `benchmark --help` (default: the originals and ours)",
        )
        command.add_argument("--contestants", nargs="+", dest="implementations", help=argparse.SUPPRESS)
    command.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds (default: {rounds})")
    _add_threads(command)
    if memory:
        command.add_argument("--memory", action="store_true", help="also measure the peak of memory")
    command.add_argument("--json", metavar="FILE", help="write all times to this file")


def _add_matchers(command: argparse.ArgumentParser) -> None:
    command.add_argument("measure", choices=("gap", "time"), help="gap to the optimum, or time of a call")
    command.add_argument("--problems", type=int, default=1000, help="random cost matrices (default: 1000)")
    command.add_argument("--queries", type=int, default=100, help="(default: 100)")
    command.add_argument("--objects", type=int, default=60, help="maximum number of objects per image (default: 60)")
    command.add_argument("--annotations", type=Path, nargs="*", default=[], help="COCO files with real objects")
    command.add_argument("--device", default="cpu", help="device on which a call is timed (default: cpu)")
    command.add_argument("--repeats", type=int, default=5, help="calls, for the median time (default: 5)")
    command.add_argument("--seed", type=int, default=0, help="seed of the random problems (default: 0)")
    _add_threads(command)


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads on the CPU")


_MINIMA = {"workers": 0, "size": 32, "problems": 5}
_NUMBERS = ("rounds", "threads", "batch", "objects", "images", "workers", "size", "problems", "queries", "repeats")


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is built.

    Raises:
        UserError: one can't work.
    """
    if args.command != "matchers" and importlib.util.find_spec("detr") is None:
        raise UserError(
            "The comparison needs the original code: pip install --no-deps python-detr==0.1.7 panopticapi-lite==0.2.0"
        )
    for name in _NUMBERS:
        values, minimum = getattr(args, name, None), _MINIMA.get(name, 1)
        if values is not None and min(np.ravel(values)) < minimum:
            raise UserError(f"--{name} {values}: give numbers of at least {minimum}.")
    file = getattr(args, "json", None)
    if file and not os.path.isdir(folder := os.path.dirname(os.path.abspath(file))):
        raise UserError(f"--json {file}: there is no folder {folder}.")


def run(args: argparse.Namespace) -> None:
    """Check the arguments, run the benchmark and print its tables."""
    check(args)
    torch.set_num_threads(args.threads)
    if args.command == "matchers":
        from benchmarks.matchers import print_gaps, print_times

        (print_gaps if args.measure == "gap" else print_times)(args)
        return
    from benchmarks.comparison import compare, machine, table

    print(", ".join(f"{name} {x}" for name, x in machine().items() if x), flush=True)
    results = []
    for case in make_cases(args):
        results.append(compare(case, args.rounds, memory=getattr(args, "memory", False)))
        print(f"\n{table(results[-1])}", flush=True)
    if args.json:
        content = {"machine": machine(), "command": sys.argv, "comparisons": results}
        write_json(args.json, content, indent=1)


def make_cases(args: argparse.Namespace) -> list[Any]:
    """Return the cases to compare, one table each."""
    # They import the original code, which `check` has found.
    from benchmarks import configs, inference, loading, training

    shared = {"options": args.options}
    if args.command == "loading":
        shared["names"] = chosen(args, loading.RECIPES)
        return [loading.Loading(workers=workers, images=args.images, **shared) for workers in args.workers]
    shared["device"] = args.device
    if args.command == "configs":
        shared |= {"names": tuple(args.config_file), "work": args.work, "size": tuple(args.size)}
        return [configs.Configs(batch=batch, **shared) for batch in args.batch]
    if args.command == "criterion":
        shared["names"] = chosen(args, training.CRITERIA)
        grid = itertools.product(args.batch, args.objects, training.PARTS)
        return [training.Criterion(part=part, batch=batch, objects=objects, **shared) for batch, objects, part in grid]
    sizes = [tuple(x) for x in args.size or [args.default_size]]
    grid = [
        {"model": model, "size": size, "batch": batch, **shared}
        for model, size, batch in itertools.product(args.model, sizes, args.batch)
    ]
    if args.command == "inference":
        names = chosen(args, inference.VARIANTS)
        return [inference.Inference(names=names, **x) for x in grid]
    names = chosen(args, training.VARIANTS)
    return [training.Training(names=names, **x, objects=objects) for x in grid for objects in args.objects]


def chosen(args: argparse.Namespace, names: Iterable[str]) -> tuple[str, ...]:
    """Return the implementations that the arguments name, or the default ones.

    Raises:
        UserError: there is no such implementation, or no such checkout.
    """
    for implementation in args.implementations or ():
        name, at, checkout = implementation.partition("@")
        if name not in names:
            raise UserError(f"--implementations {implementation}: choose from {', '.join(names)}.")
        if at and not os.path.isfile(os.path.join(checkout, "detr_d2", "__init__.py")):
            raise UserError(f"--implementations {implementation}: {checkout or 'it'} is not a checkout of detr_d2.")
    if args.implementations:
        return tuple(dict.fromkeys(args.implementations))
    if args.command in ("criterion", "loading"):
        return tuple(names)
    has_transformers = all(importlib.util.find_spec(x) for x in ("transformers", "timm"))
    boxes_only = not {"masks", "panoptic"} & set(args.model)
    return ("python-detr", *(["transformers"] if has_transformers and boxes_only else []), "ours")
