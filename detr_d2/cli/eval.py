"""Command ``eval``: evaluation of a trained model, the same as ``train --eval-only``."""

import argparse
from functools import partial

from detr_d2.cli.arguments import CommandParser, add_config_file, add_data_arguments, add_training_flags
from detr_d2.cli.command import run_command
from detr_d2.cli.train import run

EXAMPLES = """
Results are written to inference/ in the folder of the run: COCO results, AP by class, curves (docs/EVALUATION.md).

examples:
  published or own weights:
    detr-d2 eval --config-file detr_256_6_6_torchvision MODEL.WEIGHTS detr-r50-e632da11.pth
  the same in less time (docs/INFERENCE.md):
    detr-d2 eval --config-file detr_256_6_6_torchvision MODEL.WEIGHTS detr-r50-e632da11.pth \\
        MODEL.DETR.TEST.COMPILE True MODEL.DETR.TEST.PRECISION bfloat16
  your own images and annotations:
    detr-d2 eval --config-file output/mine/config.yaml --val-json val.json --val-images val/ \\
        MODEL.WEIGHTS output/mine/model_final.pth
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("eval", "Evaluate a trained model on the datasets of a config, or on your own.", EXAMPLES)
    add_config_file(parser)
    add_training_flags(parser)
    parser.add_argument("--eval-only", action="store_true", default=True, help=argparse.SUPPRESS)
    return add_data_arguments(parser)


main = partial(run_command, make_parser, run)
