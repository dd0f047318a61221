"""Command ``overfit``, also tools/overfit.py: training on a handful of images."""

import argparse
from functools import partial

from detr_d2.cli.arguments import CommandParser, add_config_file, add_data_arguments, add_training_flags
from detr_d2.cli.command import run_command

DESCRIPTION = "Overfit a handful of images: the quickest proof that data, config and model go together."
EXAMPLES = """
Takes the first images with objects of DATASETS.TRAIN, trains on them without augmentation and evaluates
on the same images. A model and dataset that are in order end with AP50 near 100.

examples:
  DETECTRON2_DATASETS=path/to/datasets detr-d2 overfit --config-file detr_128_2_3_cpu
  your own annotations in COCO's format:
    detr-d2 overfit --config-file detr_128_2_3_cpu --train-json train.json --train-images train/
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("overfit", DESCRIPTION, EXAMPLES)
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images to overfit (default: 4)")
    add_config_file(parser)
    add_training_flags(parser)
    return add_data_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Start the processes."""
    from detr_d2.engine import launch_processes

    launch_processes(overfit, args)


def overfit(args: argparse.Namespace) -> None:
    """Train, in one of the processes."""
    from detr_d2.data import check_datasets, overfit_config
    from detr_d2.engine import Trainer, setup

    cfg = setup(args)
    check_datasets(cfg, test=False)
    trainer = Trainer(overfit_config(cfg, args.num_images))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


main = partial(run_command, make_parser, run)
