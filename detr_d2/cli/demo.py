"""Train a small DETR on rendered shapes in minutes, and write a report on its results.

Renders the dataset (the first time), trains, evaluates on held-out images and writes report.html, which holds all of
its images, to the output folder (default: output/demo). Without a GPU it takes some ten minutes on two CPU cores: one
process on each, in bfloat16 if the CPU supports it, otherwise in float32, which takes longer.

Examples:
  detr-d2 demo
  a quick trial, in which the model learns little:
    detr-d2 demo SOLVER.MAX_ITER 60 SOLVER.STEPS "(50,)" TEST.EVAL_PERIOD 30
"""

import argparse
import os
import shlex
import time

from detr_d2.cli.arguments import CommandParser, add_training_flags
from detr_d2.cli.command import Command, launch


def _add_flags(parser: CommandParser) -> None:
    add_training_flags(parser, default="smca_shapes_cpu")
    parser.set_defaults(num_gpus=None, dist_url="auto")


def run(args: argparse.Namespace) -> int:
    """Choose the settings for this machine, and start the processes."""
    import torch

    from detr_d2.utils.precision import supports_bfloat16_matmul

    if torch.cuda.is_available():
        processes, options = 1, ["MODEL.DEVICE", "cuda"]
    else:
        # Two processes with half of the cores each are a third faster than one; loading takes little in comparison.
        processes = min(2, os.cpu_count())
        amp = str(supports_bfloat16_matmul())
        options = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", amp, "DATALOADER.NUM_WORKERS", "0"]
    args.num_gpus = processes if args.num_gpus is None else args.num_gpus
    args.opts = [*options, "OUTPUT_DIR", "output/demo", *args.opts]
    return launch(train, args)


def train(args: argparse.Namespace) -> None:
    """Train in one of the processes; the first one writes the report."""
    from detectron2.utils import comm

    from detr_d2.cli.demo_report import write_report
    from detr_d2.engine import ProgressBar, Trainer, setup

    trainer = Trainer(setup(args))
    trainer.register_hooks([ProgressBar()])
    trainer.resume_or_load(resume=args.resume)
    started = time.perf_counter()
    results = trainer.train()
    if not comm.is_main_process():
        return
    minutes = (time.perf_counter() - started) / 60
    report = write_report(trainer, results, minutes, shlex.join(["detr-d2", "demo", *args.words]))
    print(f"Trained for {minutes:.1f} minutes: box AP {results['bbox']['AP']:.1f}, AP50 {results['bbox']['AP50']:.1f}.")
    print(f"The report: {report}")


main = Command("demo", __doc__, _add_flags, run)
