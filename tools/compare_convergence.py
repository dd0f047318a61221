#!/usr/bin/env python
"""Train several configs on the same few images and print how their AP grows with the iterations."""

import argparse
import json
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser
from tabulate import tabulate

from detr_d2.data import check_datasets, memorizing_config
from detr_d2.engine import Trainer, run, setup

EXAMPLES = """
The images are the first with objects of DATASETS.TRAIN, learned without augmentation, evaluated on themselves. Options
as KEY VALUE hold for all configs. Every config gets a folder in OUTPUT_DIR; the table is in OUTPUT_DIR/convergence.md.

example:
  DETECTRON2_DATASETS=path/to/datasets python tools/compare_convergence.py \\
      --configs configs/detr_128_2_3_cpu.yaml configs/smca_128_2_3_cpu.yaml --every 50 --iterations 600
"""


def main(args: argparse.Namespace) -> None:
    output = None
    curves = {}
    for config in args.configs:
        args.config_file = config
        cfg = setup(args)
        check_datasets(cfg)
        output = Path(cfg.OUTPUT_DIR)
        curves[Path(config).stem] = train(cfg, Path(config).stem, args)
    table = format_table(curves)
    (output / "convergence.md").write_text(table + "\n")
    print(table)


def train(cfg, name: str, args: argparse.Namespace) -> dict[int, float]:
    """AP50 by the number of iterations done."""
    cfg = memorizing_config(cfg, args.num_images)
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name)
    cfg.TEST.EVAL_PERIOD = args.every
    if args.iterations:
        # The learning rate drops after the same share of the training as in the config.
        share = args.iterations / cfg.SOLVER.MAX_ITER
        cfg.SOLVER.STEPS = tuple(round(step * share) for step in cfg.SOLVER.STEPS)
        cfg.SOLVER.MAX_ITER = args.iterations
    cfg.freeze()
    metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
    metrics.unlink(missing_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = map(json.loads, metrics.read_text().splitlines())
    # The last evaluation comes after the last iteration, and counts it once more.
    return {min(x["iteration"] + 1, cfg.SOLVER.MAX_ITER): x["bbox/AP50"] for x in lines if "bbox/AP50" in x}


def format_table(curves: dict[str, dict[int, float]]) -> str:
    """A Markdown table of AP50, a row for each evaluation and a column for each config."""
    iterations = sorted({i for curve in curves.values() for i in curve})
    rows = [[i, *(curve.get(i) for curve in curves.values())] for i in iterations]
    return tabulate(rows, ["iterations", *curves], tablefmt="github", floatfmt=".1f")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.add_argument("--configs", nargs="+", required=True, metavar="FILE", help="config files to compare")
    parser.add_argument("--every", type=int, default=50, help="iterations between evaluations (default: 50)")
    parser.add_argument("--iterations", type=int, help="train so long instead of SOLVER.MAX_ITER")
    parser.add_argument("--num-images", type=int, default=4, help="how many images to learn (default: 4)")
    sys.exit(run(main, parser.parse_args()))
