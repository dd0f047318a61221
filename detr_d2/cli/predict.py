r"""Detect objects in images, videos, URLs and live streams; write overlays, COCO results and a summary.

The output folder then holds overlays/ (the images and videos with boxes), predictions.json (COCO results), images.json
(the file of every image_id, the name of every category_id) and summary.json. Until it is complete it is called
DIR.incomplete. The number of classes and their names come from the checkpoint.

Exit code: 0, or 1 if an input could not be read or the command failed.

Examples:
  detr-d2 predict --config-file detr-r50 --input photos/ --output predicted MODEL.WEIGHTS detr://detr-r50
  detr-d2 predict --config-file output/config.yaml --input 'day*/*.jpg' clip.mp4 --output predicted \
      --score-thresh 0.7 --batch-size 8 MODEL.WEIGHTS output/model_final.pth
  a camera, on a page of this machine, until Ctrl-C:
    detr-d2 predict --config-file detr-r50 --input 0 --serve 8080 --output predicted MODEL.WEIGHTS detr://detr-r50
  an exported model (docs/EXPORT.md):
    detr-d2 predict --weights model.onnx --input photos/ --output predicted
  small objects in large images:
    detr-d2 predict --config-file detr-r50 --input aerial.tif --output predicted --tiles 800 --overlap 0.2 \
        --batch-size 4 MODEL.WEIGHTS detr://detr-r50
  many images, faster (docs/INFERENCE.md): as above, and
      MODEL.DETR.TEST.COMPILE True MODEL.DETR.TEST.PRECISION bfloat16
"""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, check_score
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detr_d2.engine.prediction import Summary


def _add_flags(parser: CommandParser) -> None:
    parser.add_config()
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, or an exported model, which needs no config: MODEL.WEIGHTS"
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, patterns, URLs, rtsp:// streams, numbers of cameras, - for standard input",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that does not exist yet, or is empty")
    parser.add_argument(
        "--score-thresh", type=float, metavar="S", help="minimum score (default: 0.5, or the classes' own thresholds)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images, or tiles, at a time (default: 1)"
    )
    parser.add_argument(
        "--tiles", type=int, metavar="N", help="side, in pixels, of tiles that large images are predicted in"
    )
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help="share of a tile that its neighbor covers too (default: 0.2)"
    )
    parser.add_argument(
        "--whole-image", action="store_true", help="with --tiles: the whole image as one more tile, for large objects"
    )
    parser.add_argument(
        "--no-overlays", action="store_true", help="skip writing images with detections, which takes most of the time"
    )
    live = parser.add_mutually_exclusive_group()
    live.add_argument("--show", action="store_true", help="show images in a window as they are done; q ends the run")
    live.add_argument(
        "--serve", type=int, metavar="PORT", help="show them on a page of this machine: http://127.0.0.1:PORT"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote to DIR")


def run(args: argparse.Namespace) -> int:
    """Predict, print a summary and return the exit code."""
    from detr_d2.data.inputs import find_inputs
    from detr_d2.engine.prediction import predict_files
    from detr_d2.export import build_predictor, default_score
    from detr_d2.visualization.live import open_viewer

    logging.captureWarnings(True)
    start_process()
    check_score(args.score_thresh)
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: give 1 or more.")
    inputs = find_inputs(args.input)
    options = [*args.opts, *(["MODEL.WEIGHTS", args.weights] if args.weights else []), *_tile_options(args)]
    # The model then computes and keeps no masks that would be left out: 100 of a photograph are a gigabyte.
    predictor, cfg = build_predictor(args.config_file, options, min_score=args.score_thresh, trust=args.trust)
    score_thresh = default_score(cfg) if args.score_thresh is None else args.score_thresh
    try:
        with open_viewer(args.show, args.serve) as viewer:
            if args.serve is not None:
                print(f"showing the results at {viewer.url}", flush=True)
            summary = predict_files(
                predictor,
                inputs,
                args.output,
                score_thresh=score_thresh,
                # The tiles of an image are batches.
                batch_size=1 if cfg.MODEL.DETR.TEST.TILES else args.batch_size,
                overlays=not args.no_overlays,
                overwrite=args.overwrite,
                run={
                    "config": args.config_file,
                    "options": args.opts,
                    "weights": cfg.MODEL.WEIGHTS,
                    "inputs": args.input,
                },
                show=viewer and viewer.show,
            )
    except OSError as e:
        # As of a full disk. Errors of inputs are in the summary.
        raise UserError(f"--output {args.output} can't be written ({e}): make space, or name another.") from e
    print_summary(summary)
    print(f"written to {args.output}")
    if summary.failed:
        print(f"error: {len(summary.failed)} of the inputs could not be read; the others are done.", file=sys.stderr)
    return 1 if summary.failed else 0


def _tile_options(args: argparse.Namespace) -> list[str]:
    """Return the config keys that the flags for tiles stand for."""
    key = "MODEL.DETR.TEST.TILE"
    if args.tiles is None and f"{key}S" not in args.opts and (args.overlap is not None or args.whole_image):
        raise UserError("--overlap and --whole-image are for tiles: add --tiles and their side in pixels, e.g. 800.")
    values = {f"{key}S": args.tiles, f"{key}_OVERLAP": args.overlap, f"{key}_WHOLE_IMAGE": args.whole_image or None}
    given = {key: value for key, value in values.items() if value is not None}
    return [str(x) for pair in {**given, "TEST.BATCH_SIZE": args.batch_size}.items() for x in pair]


def print_summary(summary: "Summary") -> None:
    """Print the numbers of detections, and the inputs that could not be read."""
    from tabulate import tabulate

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


main = Command("predict", __doc__, _add_flags, run)
