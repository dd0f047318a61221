#!/usr/bin/env python
"""Evaluate detections in a COCO results file, without a model: AP by class, best thresholds, confusions, curves."""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from detr_d2.evaluation import (
    Evaluation,
    analyze,
    evaluate_results,
    load_annotations,
    load_results,
    summary_table,
    write_evaluation,
)
from detr_d2.utils.errors import UserError

EXAMPLES = """
train_net.py writes the same files to OUTPUT_DIR/inference/DATASET after every evaluation; docs/EVALUATION.md says how
to read them. Results are what it leaves in OUTPUT_DIR/inference/coco_instances_results.json, and predict.py too.

example:
  evaluate_results.py --annotations val.json --results output/inference/coco_instances_results.json --output report
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO json of what is there")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="COCO results json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="boxes or masks (default: bbox)")
    parser.add_argument(
        "--score-thresh", type=float, metavar="S", help="of the confusion matrix (default: that of the best F1)"
    )
    args = parser.parse_args(arguments)
    try:
        evaluation = evaluate(args)
    except UserError as e:
        sys.exit(f"error: {e}")
    rows = summary_table(evaluation)
    print(tabulate(rows[1:], rows[0], floatfmt=".4g"))
    print(f"Wrote the report to {args.output}.")


def evaluate(args: argparse.Namespace) -> Evaluation:
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder.")
    if args.score_thresh is not None and not 0 <= args.score_thresh <= 1:
        raise UserError(f"--score-thresh is {args.score_thresh}: give a number from 0 to 1.")
    annotations = load_annotations(args.annotations)
    results = load_results(args.results, annotations, args.task)
    evaluation = analyze(evaluate_results(annotations, results, args.task), args.score_thresh)
    write_evaluation(evaluation, str(args.output))
    return evaluation


if __name__ == "__main__":
    main()
