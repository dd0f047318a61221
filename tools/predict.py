#!/usr/bin/env python
"""Find objects in images, folders, patterns and videos: pictures, COCO results and a summary."""

import argparse
import logging
import sys

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from detr_d2.data.inputs import find_inputs
from detr_d2.engine.launching import take_options
from detr_d2.engine.prediction import Summary, predict_files
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.utils.allocator import keep_freed_memory
from detr_d2.utils.errors import UserError

EXAMPLES = """
OUTPUT then holds overlays/ (the images and videos with boxes), predictions.json (COCO results), images.json (which file
an image_id is, which name a category_id has) and summary.json. While it is being made it is called OUTPUT.incomplete.
The number of classes and their names come from the checkpoint.

Exit code: 0; 1 if an input could not be read or nothing could be done.

examples:
  predict.py --config-file configs/detr_256_6_6_torchvision.yaml --input photos/ --output predicted \\
      MODEL.WEIGHTS detr://detr-r50
  predict.py --config-file output/config.yaml --input 'day*/*.jpg' clip.mp4 --output predicted --score-thresh 0.7 \\
      --batch-size 8 MODEL.WEIGHTS output/model_final.pth
  many images, faster (docs/INFERENCE.md): as above, and
      MODEL.DETR.TEST.COMPILE True MODEL.DETR.TEST.PRECISION bfloat16
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the config of the model")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, videos, folders, patterns")
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that does not exist yet, or is empty")
    parser.add_argument("--score-thresh", type=float, default=0.5, metavar="S", help="least score (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--no-overlays", action="store_true", help="write no pictures, which takes most of the time")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote to DIR")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    words, options = take_options(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    args.opts += options
    setup_logger(name="detr_d2", abbrev_name="detr_d2")
    keep_freed_memory()
    try:
        return report(predict(args), args.output)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def predict(args: argparse.Namespace) -> Summary:
    if not 0 <= args.score_thresh <= 1:
        raise UserError(f"--score-thresh is {args.score_thresh}: give a number from 0 to 1.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: give 1 or more.")
    inputs = find_inputs(args.input)
    cfg = prediction_config(args.config_file, args.opts)
    return predict_files(
        Predictor.from_config(cfg),
        inputs,
        args.output,
        score_thresh=args.score_thresh,
        batch_size=args.batch_size,
        overlays=not args.no_overlays,
        overwrite=args.overwrite,
        run={"config": args.config_file, "options": args.opts, "weights": cfg.MODEL.WEIGHTS, "inputs": args.input},
    )


def report(summary: Summary, output: str) -> int:
    """Print what was found; the exit code."""
    read = [f"{summary.images} images"] if summary.images else []
    read += [f"{summary.frames} frames of {summary.videos} videos"] if summary.frames else []
    print(
        f"{summary.detections} detections with a score of {summary.score_thresh:g} or more in {' and '.join(read)}; "
        f"{summary.images_per_second:.2g} images a second"
    )
    if summary.detections:
        print(tabulate(summary.detections_by_class.most_common(), headers=("class", "detections")))
    else:
        print(f"The highest score is {summary.highest_score:.2g}: see more with a lower --score-thresh.")
    for failed in summary.failed:
        print(f"not read: {failed['error']}", file=sys.stderr)
    print(f"written to {output}")
    if summary.failed:
        print(f"error: {len(summary.failed)} of the inputs could not be read; the others are done.", file=sys.stderr)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
