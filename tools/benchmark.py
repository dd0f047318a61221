#!/usr/bin/env python
"""How fast ours is, side by side with the original code (package python-detr) and transformers' DETR."""

import argparse
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from detr_d2.engine.launching import take_options
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

EXAMPLES = """
All contestants have the same random weights and see the same random images. First their results are compared: float32
within 1e-4, lower precisions within what they lose; if they differ, nothing is timed. Then they take turns, each in a
process of its own, with one number of threads, another one beginning each round; two rounds before that are not
counted. The table says for each one

  median, fastest, slowest  milliseconds of a run
  speedup                   how many times as fast as the first: the median of the rounds' ratios; and their range
  of fastest                the same for the fastest runs alone, which a busy machine disturbs less
  of CPU time               the same for the processor's time, which it disturbs least; with --workers it says nothing
  difference                of the results from the first's: the largest of scores or boxes (relative to the image), or
                            the share of classes or pixels that differ
  memory, share             with --memory: what a run adds at its peak to a fresh process, or on the GPU

Contestants of inference and training are python-detr, transformers and ours, and with -bf16 at the end the same under
autocast. Of inference also those with -fp16, and what detr_d2.optimize_for_inference makes: ours-optimized and
ours-compiled, ours-optimized-bf16 and so on; of training ours-checkpoints, which computes activations again instead of
keeping them, and ours-compiled (SOLVER.COMPILE). The first is what the others are compared with.

Our processes keep the memory that they free (detr_d2.keep_freed_memory), as train_net.py does; the others' don't.
python-detr-kept and transformers-kept are the same libraries in processes that do: what that alone gains.

KEY VALUE pairs change the config, and with it every contestant: MODEL.DETR.ENC_LAYERS 3.

examples:
  the three that every change of the model should be measured with:
    benchmark.py inference --contestants python-detr ours ours-compiled-bf16
    benchmark.py training --memory
    benchmark.py criterion
  batches, on a GPU:
    benchmark.py inference --model box dc5 --batch 1 8 32 --device cuda --json result.json
  masks, with the peak of memory:
    benchmark.py inference --model masks panoptic --contestants python-detr ours --memory
  real images from disk:
    DETECTRON2_DATASETS=../shared/data benchmark.py loading --workers 0 2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    words, pairs = take_options(sys.argv[1:] if arguments is None else arguments)
    args = make_parser().parse_args(words)
    args.options = tuple(pairs)
    torch.set_num_threads(args.threads)
    try:
        check(args)
        run(args)
    except UserError as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{inference,training,criterion,loading}")

    command = commands.add_parser("inference", help="from images to boxes, masks or panoptic segments")
    _add_model(command, models=("box", "dc5", "r101", "masks", "panoptic"), size=(800, 1066), batch=[1])
    _add_shared(command, rounds=7)

    command = commands.add_parser("training", help="a step: forward, losses, backward, optimizer")
    _add_model(command, models=("box", "dc5", "r101", "masks"), size=(640, 850), batch=[2])
    command.add_argument("--objects", nargs="+", type=int, default=[7], help="in an image (default: 7)")
    _add_shared(command, rounds=5)

    command = commands.add_parser("criterion", help="matching and losses alone, on random predictions")
    command.add_argument("--batch", nargs="+", type=int, default=[16], help="images (default: 16)")
    command.add_argument("--objects", nargs="+", type=int, default=[20], help="in an image (default: 20)")
    command.add_argument("--device", default="cpu", help="(default: cpu)")
    _add_shared(command, rounds=20)

    command = commands.add_parser("loading", help="reading and augmenting the images of DATASETS.TRAIN")
    command.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="processes that load (default: 0 2)")
    command.add_argument("--images", type=int, default=100, help="of a run (default: 100)")
    _add_shared(command, rounds=5, memory=False)
    return parser


def _add_model(
    command: argparse.ArgumentParser, models: tuple[str, ...], size: tuple[int, int], batch: list[int]
) -> None:
    command.add_argument("--model", nargs="+", choices=models, default=["box"], help="(default: box)")
    command.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), help=f"default: {size[0]} {size[1]}"
    )
    command.set_defaults(default_size=size)
    command.add_argument("--batch", nargs="+", type=int, default=batch, help=f"images (default: {batch[0]})")
    command.add_argument("--device", default="cpu", help="(default: cpu)")
    command.add_argument(
        "--contestants", nargs="+", metavar="NAME", help="see below (default: python-detr, transformers if there, ours)"
    )


def _add_shared(command: argparse.ArgumentParser, rounds: int, memory: bool = True) -> None:
    command.add_argument("--rounds", type=int, default=rounds, help=f"that are timed (default: {rounds})")
    command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    if memory:
        command.add_argument("--memory", action="store_true", help="measure the peak of memory, too")
    command.add_argument("--json", metavar="FILE", help="write all times to this file")


def check(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: an argument that can't work, before anything is built.
    """
    if importlib.util.find_spec("detr") is None:
        raise UserError(
            "The comparison needs the original code: pip install --no-deps python-detr==0.1.7 panopticapi-lite==0.2.0"
        )
    least = {"rounds": 1, "threads": 1, "batch": 1, "objects": 1, "images": 1, "workers": 0, "size": 32}
    for name, smallest in least.items():
        values = getattr(args, name, None)
        numbers = values if isinstance(values, list) else [] if values is None else [values]
        if any(x < smallest for x in np.ravel(numbers)):
            raise UserError(f"--{name} {values}: it takes numbers from {smallest}.")
    folder = os.path.dirname(os.path.abspath(args.json)) if args.json else os.curdir
    if not os.path.isdir(folder):
        raise UserError(f"--json {args.json}: there is no folder {folder}.")


def run(args: argparse.Namespace) -> None:
    # Only now is it sure that the original is there.
    from benchmarks.comparison import compare, machine, table

    print(", ".join(f"{name} {x}" for name, x in machine().items() if x), flush=True)
    results = []
    for case in make_cases(args):
        results.append(compare(case, args.rounds, memory=getattr(args, "memory", False)))
        print(f"\n{table(results[-1])}", flush=True)
    if args.json:
        content = {"machine": machine(), "command": sys.argv, "comparisons": results}
        with atomic_file(args.json) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def make_cases(args: argparse.Namespace) -> list[Any]:
    from benchmarks.criterion import PARTS, Criterion
    from benchmarks.inference import VARIANTS as PREDICTORS
    from benchmarks.inference import Inference
    from benchmarks.loading import Loading
    from benchmarks.training import VARIANTS as TRAINERS
    from benchmarks.training import Training

    shared = {"options": args.options}
    if args.command == "loading":
        return [Loading(workers, images=args.images, **shared) for workers in args.workers]
    shared["device"] = args.device
    if args.command == "criterion":
        grid = itertools.product(args.batch, args.objects, PARTS)
        return [Criterion(part, batch=batch, objects=objects, **shared) for batch, objects, part in grid]
    sizes = [tuple(x) for x in args.size or [args.default_size]]
    grid = itertools.product(args.model, sizes, args.batch)
    if args.command == "inference":
        names = chosen(args, PREDICTORS)
        return [Inference(names, model, size, batch, **shared) for model, size, batch in grid]
    names = chosen(args, TRAINERS)
    return [
        Training(names, model, size, batch, objects, **shared)
        for model, size, batch in grid
        for objects in args.objects
    ]


def chosen(args: argparse.Namespace, variants: Iterable[str]) -> tuple[str, ...]:
    """
    Raises:
        UserError: there is no such contestant.
    """
    if wrong := [x for x in args.contestants or () if x not in variants]:
        raise UserError(f"--contestants {wrong[0]}: choose from {', '.join(variants)}.")
    if args.contestants:
        return tuple(dict.fromkeys(args.contestants))
    has_theirs = all(importlib.util.find_spec(x) for x in ("transformers", "timm"))
    boxes_only = not {"masks", "panoptic"} & set(args.model)
    return ("python-detr", *(["transformers"] if has_theirs and boxes_only else []), "ours")


if __name__ == "__main__":
    sys.exit(main())
