"""Evaluate detections in a COCO results file, without a model: AP by class, best thresholds, confusions, curves.

The input is coco_instances_results.json, which `detr-d2 train` and `eval` write to OUTPUT_DIR/inference, or
predictions.json of `detr-d2 predict`. The output is the same as in OUTPUT_DIR/inference/DATASET after every evaluation:
tables, plots and evaluation.json, which docs/EVALUATION.md explains.

Example:
  detr-d2 evaluate-results --annotations val.json --input output/inference/coco_instances_results.json --output report
"""

import argparse
from pathlib import Path

from detr_d2.cli.arguments import CommandParser, check_score
from detr_d2.cli.command import Command
from detr_d2.utils.errors import UserError


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="ground truth in COCO's format")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="results in COCO's format")
    parser.add_alias("--input", "--results")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="boxes or masks (default: bbox)")
    parser.add_argument(
        "--score-thresh", type=float, metavar="S", help="minimum score for confusions (default: that of the best F1)"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write the report."""
    from tabulate import tabulate

    from detr_d2 import evaluation

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder.")
    check_score(args.score_thresh)
    annotations = evaluation.load_annotations(args.annotations)
    results = evaluation.load_results(args.input, annotations, args.task)
    matches = evaluation.evaluate_results(annotations, results, args.task)
    analysis = evaluation.analyze(matches, args.score_thresh)
    evaluation.write_evaluation(analysis, str(args.output))
    header, *rows = evaluation.summary_table(analysis)
    print(tabulate(rows, header, floatfmt=".4g"))
    print(f"Wrote the report to {args.output}.")


main = Command("evaluate-results", __doc__, _add_flags, run)
