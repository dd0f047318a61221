"""Overfit a handful of images: a sanity check that data, config and model work together.

Trains on the first images with objects of DATASETS.TRAIN, without augmentation, and evaluates on the same images.
Without mistakes, AP50 approaches 100.

Examples:
  DETECTRON2_DATASETS=path/to/datasets detr-d2 overfit --config-file detr_128_2_3_cpu
  your own annotations in COCO's format:
    detr-d2 overfit --config-file detr_128_2_3_cpu --train-json train.json --train-images train/
"""

import argparse
from functools import partial

from detr_d2.cli.arguments import CommandParser, add_data_arguments, add_training_flags
from detr_d2.cli.command import Command, launch


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images to overfit (default: 4)")
    add_training_flags(parser)
    add_data_arguments(parser)


def overfit(args: argparse.Namespace) -> None:
    """Train in one of the processes."""
    from detr_d2.data import check_datasets, overfit_config
    from detr_d2.engine import Trainer, setup

    cfg = setup(args)
    check_datasets(cfg, test=False)
    trainer = Trainer(overfit_config(cfg, args.num_images))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


main = Command("overfit", __doc__, _add_flags, partial(launch, overfit))
