"""Command ``analyze``, also tools/analyze_model.py: parameters, FLOPs and activations."""

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path

from detr_d2.cli.arguments import CommandParser, add_config_file
from detr_d2.cli.command import run_command
from detr_d2.utils.errors import UserError

DESCRIPTION = "Count parameters, FLOPs and activations of the model that a config describes, by module and image size."
EXAMPLES = """
A FLOP is one multiply-add, as in DETR's paper. Softmax, activations and additions are not counted, norms are.
Activations are the elements that convolutions, linear layers and attention put out. Batch size 1, inference, on the
CPU, without weights.

examples:
  detr-d2 analyze --config-file detr_256_6_6_torchvision --size 800 1066 --depth 3
  the mean over the first 100 images of a dataset, resized as in evaluation:
    detr-d2 analyze --config-file detr_256_6_6_torchvision --dataset coco_2017_val --num-images 100
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("analyze", DESCRIPTION, EXAMPLES)
    add_config_file(parser)
    parser.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), help="of the image (default: 800 1066)"
    )
    parser.add_argument("--dataset", metavar="NAME", help="use the sizes of the images of this dataset; FLOPs only")
    parser.add_argument("--num-images", type=int, default=100, metavar="N", help="of the dataset (default: 100)")
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of modules to show (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the statistics of every module to this file")
    parser.add_config_keys()
    return parser


def run(args: argparse.Namespace) -> None:
    """Count, print the tables and write the JSON."""
    from detr_d2.cli.model_analysis import analyze, dataset_sizes, format_report
    from detr_d2.config import load_config

    cfg = load_config(args.config_file, args.opts)
    if args.dataset and args.size:
        raise UserError("Give --size or --dataset, not both.")
    sizes = Counter(map(tuple, args.size or [(800, 1066)]))
    if args.dataset:
        sizes = dataset_sizes(cfg, args.dataset, args.num_images)
    if any(side < 1 for size in sizes for side in size):
        raise UserError("--size takes two numbers of pixels from 1.")
    report = analyze(cfg, sizes, activations=not args.dataset)
    print(format_report(report, args.depth))
    if args.json:
        report = {"config": args.config_file, "options": args.opts, **report}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


main = partial(run_command, make_parser, run)
