"""Plot the training curves of one run or several: losses, AP, class error, learning rate.

A run is the OUTPUT_DIR of `detr-d2 train`; runs in progress work too. The smoothed curve is drawn over the raw one.
In resumed runs, later values override earlier ones.

Examples:
  detr-d2 plot --input output/trial
  compare two runs, in a file for a paper:
    detr-d2 plot --input output/detr output/smca --output curves.pdf --metrics total_loss bbox/AP bbox/AP50
"""

import argparse
from pathlib import Path

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import Command
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--input", nargs="+", type=Path, default=[], metavar="DIR", help="OUTPUT_DIR of every run")
    parser.add_argument("runs", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default="curves.png", metavar="FILE", help="plot (default: curves.png)")
    parser.add_argument("--metrics", nargs="+", metavar="KEY", help="keys of metrics.json, one panel each")
    parser.add_argument(
        "--smoothing", type=int, metavar="N", help="values to average; 1: none (default: a twentieth of all)"
    )


def run(args: argparse.Namespace) -> None:
    """Plot, and write the file."""
    from detr_d2.visualization import plot_training

    form = args.output.suffix[1:].lower()
    if form not in ("png", "pdf", "svg"):
        raise UserError(f"--output {args.output}: end its name in .png, .pdf or .svg.")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: make the folder {args.output.parent} first.")
    if args.smoothing is not None and args.smoothing < 1:
        raise UserError(f"--smoothing is {args.smoothing}: give 1 or more.")
    runs = [*args.runs, *args.input]
    if not runs:
        raise UserError("Give the folders of the runs: --input DIR …")
    folders = [path.resolve().parent if path.is_file() else path.resolve() for path in runs]
    names = [folder.name for folder in folders]
    # Folders with the same name are called by their path.
    by_name = {name if names.count(name) == 1 else str(path): path for name, path in zip(names, runs, strict=True)}
    figure = plot_training(by_name, args.metrics, args.smoothing)
    with atomic_file(str(args.output)) as file:
        figure.savefig(file, format=form)
    print(f"Wrote {args.output}.")


main = Command("plot", __doc__, _add_flags, run)
