"""Command ``evaluate-results``, also tools/evaluate_results.py: AP and more from a file of detections."""

import argparse
from functools import partial
from pathlib import Path

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import run_command
from detr_d2.utils.errors import UserError

DESCRIPTION = (
    "Evaluate detections in a COCO results file, without a model: AP by class, best thresholds, confusions, curves."
)
EXAMPLES = """
`detr-d2 train` and `eval` write the same files to OUTPUT_DIR/inference/DATASET after every evaluation;
docs/EVALUATION.md says how to read them. Results are what they leave in
OUTPUT_DIR/inference/coco_instances_results.json, and predictions.json of `detr-d2 predict`.

example:
  detr-d2 evaluate-results --annotations val.json --input output/inference/coco_instances_results.json --output report
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("evaluate-results", DESCRIPTION, EXAMPLES)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO json with the truth")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="COCO results json")
    parser.add_alias("--input", "--results")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the report; its JSON is evaluation.json"
    )
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="boxes or masks (default: bbox)")
    parser.add_argument(
        "--score-thresh", type=float, metavar="S", help="of the confusion matrix (default: that of the best F1)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write the report."""
    from tabulate import tabulate

    from detr_d2.evaluation import (
        analyze,
        evaluate_results,
        load_annotations,
        load_results,
        summary_table,
        write_evaluation,
    )

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder.")
    if args.score_thresh is not None and not 0 <= args.score_thresh <= 1:
        raise UserError(f"--score-thresh is {args.score_thresh}: give a number from 0 to 1.")
    annotations = load_annotations(args.annotations)
    results = load_results(args.input, annotations, args.task)
    evaluation = analyze(evaluate_results(annotations, results, args.task), args.score_thresh)
    write_evaluation(evaluation, str(args.output))
    rows = summary_table(evaluation)
    print(tabulate(rows[1:], rows[0], floatfmt=".4g"))
    print(f"Wrote the report to {args.output}.")


main = partial(run_command, make_parser, run)
