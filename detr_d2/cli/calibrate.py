r"""Set score thresholds of the classes that guarantee a recall, or a rate of false alarms, on new images.

Thresholds are calibrated on annotated images that the model was not trained on, by conformal risk control
(arXiv 2208.02814). docs/EVALUATION.md tells what is guaranteed, and on which conditions. The output is the config with
MODEL.DETR.TEST.CLASS_THRESHOLDS, which predict, eval and export apply.

Examples:
  miss at most 10 % of the objects of a class, on average over images that show it:
    detr-d2 calibrate --config-file output/mine/config.yaml --weights output/mine/model_final.pth \
        --annotations val.json --images val/ --recall 0.9 --output calibrated.yaml
  a false alarm of a class in at most 5 % of the images:
    detr-d2 calibrate --weights model.onnx --annotations val.json --images val/ --false-alarms 0.05 \
        --output calibrated.yaml
  use them:
    detr-d2 predict --config-file calibrated.yaml --input photos/ --output predicted
"""

import argparse
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, add_annotated_flags
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detr_d2.evaluation.conformal import ClassThreshold


def _add_flags(parser: CommandParser) -> None:
    add_annotated_flags(parser)
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--recall", type=float, metavar="R", help="minimum recall, between 0 and 1")
    bound.add_argument(
        "--false-alarms", type=float, metavar="R", help="maximum share of images with a false alarm, between 0 and 1"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="config to write (.yaml)")


def run(args: argparse.Namespace) -> None:
    """Predict, calibrate, print the table and write the config."""
    from detr_d2.engine.annotated import open_annotated, predict_annotated, to_results
    from detr_d2.evaluation import evaluate_results
    from detr_d2.evaluation.conformal import CONTROLS
    from detr_d2.utils.files import atomic_file

    flag, value = ("--recall", args.recall) if args.recall is not None else ("--false-alarms", args.false_alarms)
    if not 0 < value < 1:
        raise UserError(f"{flag} is {value}: give a number between 0 and 1.")
    start_process()
    predictor, cfg, coco = open_annotated(args)
    ids = sorted(coco.cats)
    predictions = predict_annotated(predictor, coco, args.images, args.batch_size)
    results = [x for key, instances in predictions for x in to_results(key, instances, ids)]
    rate, bound = ("missed", 1 - value) if args.recall is not None else ("false alarms", value)
    by_category = CONTROLS[rate](evaluate_results(coco, results), bound)
    thresholds = dict(zip((coco.cats[i]["name"] for i in ids), by_category, strict=True))
    print(format_thresholds(thresholds, flag))
    if not any(x.is_guaranteed for x in by_category):
        raise UserError(f"{flag} {value} can't be guaranteed for any class: {_advice(by_category, flag)}.")
    cfg.defrost()
    order = predictor.categories.names if set(predictor.categories.names) == set(thresholds) else thresholds
    cfg.MODEL.DETR.TEST.CLASS_THRESHOLDS = tuple(thresholds[name].threshold for name in order)
    lines = [f"detr-d2 calibrate {flag} {value}, {args.annotations}", *format_thresholds(thresholds, flag).splitlines()]
    text = "".join(f"# {line}\n" for line in lines) + cfg.dump()
    try:
        with atomic_file(args.output) as file:
            file.write(text.encode())
    except OSError as e:
        raise UserError(f"--output {args.output} can't be written: {e}.") from e
    print(f"written to {args.output}")
    if lost := [name for name, x in thresholds.items() if not x.is_guaranteed]:
        advice = _advice([thresholds[name] for name in lost], flag)
        print(f"warning: nothing is guaranteed for {', '.join(lost)}: {advice}.")


def format_thresholds(thresholds: dict[str, "ClassThreshold"], flag: str) -> str:
    """Return a table of the thresholds by class name."""
    from tabulate import tabulate

    rate, convert = ("recall", lambda x: 1 - x) if flag == "--recall" else ("false alarms", lambda x: x)
    rows = [
        (name, x.threshold, x.images, convert(x.risk), convert(x.min_bound), "yes" if x.is_guaranteed else "no")
        for name, x in thresholds.items()
    ]
    headers = ("class", "threshold", "images", f"{rate} here", f"best {flag}", "guaranteed")
    return tabulate(rows, headers, floatfmt=("", ".4f", "", ".3f", ".3f", ""))


def _advice(thresholds: list["ClassThreshold"], flag: str) -> str:
    best = min(x.min_bound for x in thresholds)
    best, limit = (1 - best, "at most") if flag == "--recall" else (best, "at least")
    return f"give {flag} of {limit} {best:.3f}, more images, or a better model"


main = Command("calibrate", __doc__, _add_flags, run)
