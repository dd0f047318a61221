"""Command ``attention``, also tools/visualize_attention.py: where a model looks in an image."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, add_config_file
from detr_d2.cli.command import run_command, start_process
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DESCRIPTION = "Visualize where a trained model looks in an image: the attention of object queries, or of points."
EXAMPLES = """
Without --encoder-point: what the decoder reads from the image for the best detections, or for the queries of --queries.
With it: where the encoder looks from a point; x and y in pixels of the image, the flag once per point. A map is scaled
to its own largest weight, which is written in its corner.

examples:
  detr-d2 attention --config-file detr-r50 --input photo.jpg --output attention.png MODEL.WEIGHTS detr://detr-r50
  detr-d2 attention --config-file output/config.yaml --input photo.jpg --output attention.png --queries 3 17 42 \\
      --layer 0 --per-head MODEL.WEIGHTS output/model_final.pth
  detr-d2 attention --config-file output/config.yaml --input photo.jpg --output attention.png \\
      --encoder-point 120 80 --encoder-point 300 200 MODEL.WEIGHTS output/model_final.pth
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("attention", DESCRIPTION, EXAMPLES)
    add_config_file(parser, required=True)
    parser.add_argument("--input", required=True, metavar="IMAGE", help="the image")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="replaced if it exists")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, default=5, metavar="N", help="queries of the N best detections (default: 5)")
    which.add_argument("--queries", type=int, nargs="+", metavar="Q", help="these queries, numbered from 0")
    which.add_argument("--encoder-point", type=float, nargs=2, action="append", metavar=("X", "Y"))
    parser.add_argument("--layer", type=int, default=-1, help="from 0, or from the end with -1 (default: -1, the last)")
    parser.add_argument("--per-head", action="store_true", help="a map for every head instead of their mean")
    parser.add_config_keys()
    return parser


def run(args: argparse.Namespace) -> None:
    """Visualize, and write the image."""
    from PIL import Image

    start_process()
    try:
        image = visualize(args)
        with atomic_file(args.output) as file:
            Image.fromarray(image).save(file, format="PNG")
    except OSError as e:
        raise UserError(str(e)) from e
    print(f"written to {args.output}")


def visualize(args: argparse.Namespace) -> "NDArray[np.uint8]":
    """Return the maps over the image, side by side, as an RGB image."""
    import torch

    from detr_d2.data.images import read_image
    from detr_d2.inference.predictor import Predictor, prediction_config
    from detr_d2.modeling import record_attention
    from detr_d2.visualization import draw_encoder_attention, draw_query_attention

    if args.top < 1:
        raise UserError(f"--top is {args.top}: give 1 or more.")
    if Path(args.output).suffix.lower() != ".png" or not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output is {args.output}: give the path of a .png file in a folder that exists.")
    image = read_image(args.input, "RGB")
    points = relative_points(args.encoder_point or [], image)
    predictor = Predictor.from_config(prediction_config(args.config_file, args.opts))
    with record_attention(predictor.model, points) as record, torch.no_grad():
        (instances,) = predictor([image])
    if points:
        return draw_encoder_attention(image, record, layer=args.layer, per_head=args.per_head)
    style = {"queries": args.queries, "top": args.top, "layer": args.layer, "per_head": args.per_head}
    return draw_query_attention(image, instances, record, predictor.categories.names, **style)


def relative_points(points: list[list[float]], image: "NDArray[np.uint8]") -> list[tuple[float, float]]:
    """Return points in pixels as shares of the image's width and height."""
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--encoder-point {x:g} {y:g} is outside the image, which is {width} x {height} pixels.")
    return [(x / width, y / height) for x, y in points]


main = partial(run_command, make_parser, run)
