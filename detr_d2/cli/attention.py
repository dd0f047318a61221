r"""Visualize where a trained model attends in an image: the attention of object queries, or of points.

By default, these are the maps of the decoder for the best detections, or for the queries of --queries. With
--encoder-point X Y, in pixels of the image and once per point, they are the maps of the encoder from these points. Each
map is scaled to its own largest weight, which is written in its corner.

Examples:
  detr-d2 attention --config-file detr-r50 --input photo.jpg --output attention.png MODEL.WEIGHTS detr://detr-r50
  detr-d2 attention --config-file output/config.yaml --input photo.jpg --output attention.png --queries 3 17 42 \
      --layer 0 --per-head MODEL.WEIGHTS output/model_final.pth
  detr-d2 attention --config-file output/config.yaml --input photo.jpg --output attention.png \
      --encoder-point 120 80 --encoder-point 300 200 MODEL.WEIGHTS output/model_final.pth
"""

import argparse
from pathlib import Path

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file


def _add_flags(parser: CommandParser) -> None:
    parser.add_config(required=True)
    parser.add_argument("--input", required=True, metavar="IMAGE", help="image to draw on")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="file to write, replaced if it exists")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, default=5, metavar="N", help="queries of the N best detections (default: 5)")
    which.add_argument("--queries", type=int, nargs="+", metavar="Q", help="these queries, numbered from 0")
    which.add_argument(
        "--encoder-point", type=float, nargs=2, action="append", metavar=("X", "Y"), help="point; can be repeated"
    )
    parser.add_argument("--layer", type=int, default=-1, help="layer, counted from 0, or -1 for the last (default: -1)")
    parser.add_argument("--per-head", action="store_true", help="one map per head instead of their mean")


def run(args: argparse.Namespace) -> None:
    """Draw the maps over the image, side by side, and write them."""
    import torch
    from PIL import Image

    from detr_d2.config import file_channels
    from detr_d2.data.bands import to_display
    from detr_d2.data.images import read_image
    from detr_d2.inference.predictor import Predictor, prediction_config
    from detr_d2.modeling import record_attention
    from detr_d2.visualization import draw_encoder_attention, draw_query_attention

    start_process()
    if args.top < 1:
        raise UserError(f"--top is {args.top}: give 1 or more.")
    if Path(args.output).suffix.lower() != ".png" or not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output is {args.output}: give the path of a .png file in a folder that exists.")
    try:
        cfg = prediction_config(args.config_file, args.opts, trust=args.trust)
        image = read_image(args.input, "RGB", channels=file_channels(cfg))
        points = relative_points(args.encoder_point or [], *image.shape[:2])
        predictor = Predictor.from_config(cfg)
        with record_attention(predictor.model, points) as record, torch.no_grad():
            (instances,) = predictor([image])
        image = to_display(image)
        style = {"layer": args.layer, "per_head": args.per_head}
        if points:
            maps = draw_encoder_attention(image, record, **style)
        else:
            style |= {"queries": args.queries, "top": args.top}
            maps = draw_query_attention(image, instances, record, predictor.categories.names, **style)
        with atomic_file(args.output) as file:
            Image.fromarray(maps).save(file, format="PNG")
    except OSError as e:
        raise UserError(str(e)) from e
    print(f"written to {args.output}")


def relative_points(points: list[list[float]], height: int, width: int) -> list[tuple[float, float]]:
    """Return points in pixels as shares of the image's width and height."""
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--encoder-point {x:g} {y:g} is outside the image, which is {width} x {height} pixels.")
    return [(x / width, y / height) for x, y in points]


main = Command("attention", __doc__, _add_flags, run)
