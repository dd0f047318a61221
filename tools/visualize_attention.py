#!/usr/bin/env python
"""Where a trained model looks in an image: the attention of object queries, or of points of the image, as a picture."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from numpy.typing import NDArray
from PIL import Image

from detr_d2.data.images import read_image
from detr_d2.engine.launching import take_options
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.modeling import record_attention
from detr_d2.utils.allocator import keep_freed_memory
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file
from detr_d2.visualization import draw_encoder_attention, draw_query_attention

EXAMPLES = """
Without --encoder-point: from which parts of the image the decoder took what it says of the best detections, or of the
queries that --queries names. With it: where the encoder looks from a point; x and y in pixels of the image, the option
once a point. A map is scaled to its own largest weight, which is written in its corner.

examples:
  visualize_attention.py --config-file configs/detr_256_6_6_torchvision.yaml --input photo.jpg --output attention.png \\
      MODEL.WEIGHTS detr://detr-r50
  visualize_attention.py --config-file output/config.yaml --input photo.jpg --output attention.png --queries 3 17 42 \\
      --layer 0 --per-head MODEL.WEIGHTS output/model_final.pth
  visualize_attention.py --config-file output/config.yaml --input photo.jpg --output attention.png \\
      --encoder-point 120 80 --encoder-point 300 200 MODEL.WEIGHTS output/model_final.pth
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the config of the model")
    parser.add_argument("--input", required=True, metavar="IMAGE")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="replaced if it exists")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, default=5, metavar="N", help="queries of the N best detections (default: 5)")
    which.add_argument("--queries", type=int, nargs="+", metavar="Q", help="these queries, numbered from 0")
    which.add_argument("--encoder-point", type=float, nargs=2, action="append", metavar=("X", "Y"))
    parser.add_argument("--layer", type=int, default=-1, help="from 0, or from the end with -1 (default: -1, the last)")
    parser.add_argument("--per-head", action="store_true", help="a map for every head instead of their mean")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    words, options = take_options(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    args.opts += options
    setup_logger(name="detr_d2", abbrev_name="detr_d2")
    keep_freed_memory()
    try:
        picture = visualize(args)
        with atomic_file(args.output) as file:
            Image.fromarray(picture).save(file, format="PNG")
    except (UserError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"written to {args.output}")
    return 0


def visualize(args: argparse.Namespace) -> NDArray[np.uint8]:
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


def relative_points(points: list[list[float]], image: NDArray[np.uint8]) -> list[tuple[float, float]]:
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--encoder-point {x:g} {y:g} is outside the image, which is {width} x {height} pixels.")
    return [(x / width, y / height) for x, y in points]


if __name__ == "__main__":
    sys.exit(main())
