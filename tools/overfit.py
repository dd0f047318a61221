#!/usr/bin/env python
"""Learn a handful of images by heart: the quickest proof that data, config and model go together."""

import argparse
import sys

from detectron2.engine import default_argument_parser

from detr_d2.data import check_datasets, overfit_config
from detr_d2.engine import Trainer, add_data_arguments, run, setup

EXAMPLES = """
Takes the first images with objects of DATASETS.TRAIN, trains on them without augmentation and evaluates
on the same images. A model and dataset that are in order end with AP50 near 100.

examples:
  DETECTRON2_DATASETS=path/to/datasets python tools/overfit.py --config-file configs/detr_128_2_3_cpu.yaml
  your own annotations in COCO's format:
    python tools/overfit.py --config-file configs/detr_128_2_3_cpu.yaml --train-json train.json --train-images train/
"""


def main(args: argparse.Namespace) -> dict:
    cfg = setup(args)
    check_datasets(cfg, test=False)
    trainer = Trainer(overfit_config(cfg, args.num_images))
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parser = add_data_arguments(default_argument_parser(epilog=EXAMPLES))
    parser.add_argument("--num-images", type=int, default=4, help="how many images to learn (default: 4)")
    sys.exit(run(main, parser.parse_args()))
