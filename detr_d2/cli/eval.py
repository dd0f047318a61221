r"""Evaluate a trained model on the datasets of a config, or on your own.

Results are written to inference/ in the folder of the run: COCO results, AP by class, curves (docs/EVALUATION.md).

Examples:
  published or own weights:
    detr-d2 eval --config-file detr_256_6_6_torchvision MODEL.WEIGHTS detr-r50-e632da11.pth
  the same in less time (docs/INFERENCE.md):
    detr-d2 eval --config-file detr_256_6_6_torchvision MODEL.WEIGHTS detr-r50-e632da11.pth \
        MODEL.DETR.TEST.COMPILE True MODEL.DETR.TEST.PRECISION bfloat16
  an exported model (docs/EXPORT.md):
    detr-d2 eval --config-file detr_256_6_6_torchvision MODEL.WEIGHTS detr-r50.onnx
  your own images and annotations:
    detr-d2 eval --config-file output/mine/config.yaml --val-json val.json --val-images val/ \
        MODEL.WEIGHTS output/mine/model_final.pth
"""

import argparse

from detr_d2.cli.arguments import CommandParser, add_data_arguments, add_training_flags
from detr_d2.cli.command import Command
from detr_d2.cli.train import run


def _add_flags(parser: CommandParser) -> None:
    # Those of `train --eval-only`, which is the same command.
    add_training_flags(parser)
    parser.add_argument("--eval-only", action="store_true", default=True, help=argparse.SUPPRESS)
    add_data_arguments(parser)


main = Command("eval", __doc__, _add_flags, run)
