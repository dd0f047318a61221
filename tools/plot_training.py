#!/usr/bin/env python
"""Draw the training curves of one run or several: losses, AP, class error, learning rate."""

import argparse
import sys
from pathlib import Path

from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file
from detr_d2.visualization import plot_training

EXAMPLES = """
A run is a folder that train_net.py wrote to (OUTPUT_DIR), also one that it is still writing to. The smoothed curve
stands before the faint one of the values in metrics.json. Of a run that was resumed, what was done last counts.

examples:
  plot_training.py output/trial
  compare two runs, in a file for a paper:
    plot_training.py output/detr output/smca --output curves.pdf --metrics total_loss bbox/AP bbox/AP50
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a run")
    parser.add_argument(
        "--output", type=Path, default=Path("curves.png"), metavar="FILE", help="png, pdf or svg (default: curves.png)"
    )
    parser.add_argument("--metrics", nargs="+", metavar="KEY", help="keys of metrics.json, a panel each")
    parser.add_argument(
        "--smoothing", type=int, metavar="N", help="average over N lines of the file; 1: none (default: a twentieth)"
    )
    args = parser.parse_args(arguments)
    try:
        plot(args)
    except UserError as e:
        sys.exit(f"error: {e}")
    print(f"Wrote {args.output}.")


def plot(args: argparse.Namespace) -> None:
    form = args.output.suffix[1:].lower()
    if form not in ("png", "pdf", "svg"):
        raise UserError(f"--output {args.output}: end its name in .png, .pdf or .svg.")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: make the folder {args.output.parent} first.")
    if args.smoothing is not None and args.smoothing < 1:
        raise UserError(f"--smoothing is {args.smoothing}: give 1 or more.")
    figure = plot_training(named(args.runs), args.metrics, args.smoothing)
    with atomic_file(str(args.output)) as file:
        figure.savefig(file, format=form)


def named(runs: list[Path]) -> dict[str, Path]:
    """Runs by the name of their folder, or by their path where several folders have the same name."""
    folders = [path.resolve().parent if path.is_file() else path.resolve() for path in runs]
    names = [folder.name for folder in folders]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, runs, strict=True)}


if __name__ == "__main__":
    main()
