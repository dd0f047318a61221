#!/usr/bin/env python
"""Train several configs on the same data and show how their AP grows with the iterations."""

import argparse
import json
import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from tabulate import tabulate

from detr_d2.data import check_datasets, overfit_config
from detr_d2.engine import Trainer, run, setup
from detr_d2.engine.launching import take_options
from detr_d2.utils.errors import UserError
from detr_d2.visualization import plot_training

EXAMPLES = """
Options as KEY VALUE hold for all configs. Every config gets a folder in OUTPUT_DIR; the table is in
OUTPUT_DIR/convergence.md, the curves in OUTPUT_DIR/convergence.png.

examples:
  does SMCA reach in 300 iterations what DETR reaches in 3000?
    python tools/compare_convergence.py --configs configs/detr_shapes_cpu.yaml configs/smca_shapes_cpu.yaml \\
        --iterations 3000 300 OUTPUT_DIR output/convergence
  without a dataset that a small model could generalise from, by learning four images by heart:
    DETECTRON2_DATASETS=path/to/datasets python tools/compare_convergence.py --memorize 4 --metric AP50 \\
        --configs configs/detr_128_2_3_cpu.yaml configs/smca_128_2_3_cpu.yaml --iterations 300 --every 50
"""


def main(args: argparse.Namespace) -> None:
    iterations = args.iterations or [None]
    if len(iterations) == 1:
        iterations = iterations * len(args.configs)
    if len(iterations) != len(args.configs):
        raise UserError(f"--iterations takes one number, or one for each of the {len(args.configs)} configs.")
    output = None
    curves = {}
    for config, count in zip(args.configs, iterations, strict=True):
        args.config_file = config
        cfg = setup(args)
        if args.memorize:
            # The trainer checks the images that are learned, not the dataset that they are of.
            check_datasets(cfg, test=False)
            cfg = overfit_config(cfg, args.memorize)
        output = Path(cfg.OUTPUT_DIR)
        name = Path(config).stem + (f" in {count}" if count else "")
        if name in curves:
            raise UserError(f"{config} stands twice in --configs with the same number of iterations: once is enough.")
        curves[name] = train(scheduled(cfg, output / name.replace(" ", "_"), count, args.every), args.metric)
    table = format_table(curves)
    (output / "convergence.md").write_text(table + "\n")
    runs = {name: output / name.replace(" ", "_") for name in curves}
    plot_training(runs, [f"bbox/{args.metric}", "total_loss"]).savefig(output / "convergence.png", dpi=150)
    print(table)


def scheduled(cfg: CfgNode, folder: Path, iterations: int | None, every: int) -> CfgNode:
    """``cfg`` with other iterations; the learning rate drops after the same share of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.TEST.EVAL_PERIOD = every
    if iterations:
        share = iterations / cfg.SOLVER.MAX_ITER
        cfg.SOLVER.STEPS = tuple(int(step * share) for step in cfg.SOLVER.STEPS)
        cfg.SOLVER.MAX_ITER = iterations
    cfg.freeze()
    return cfg


def train(cfg: CfgNode, metric: str) -> dict[int, float]:
    """AP, or another metric of boxes, by the number of iterations done."""
    metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
    metrics.unlink(missing_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    key = f"bbox/{metric}"
    lines = map(json.loads, metrics.read_text().splitlines())
    # The last evaluation comes after the last iteration, and counts it once more.
    return {min(x["iteration"] + 1, cfg.SOLVER.MAX_ITER): x[key] for x in lines if key in x}


def format_table(curves: dict[str, dict[int, float]]) -> str:
    """A Markdown table, a row for each evaluation and a column for each config."""
    iterations = sorted({i for curve in curves.values() for i in curve})
    rows = [[i, *(curve.get(i) for curve in curves.values())] for i in iterations]
    return tabulate(rows, ["iterations", *curves], tablefmt="github", floatfmt=".1f")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.add_argument("--configs", nargs="+", required=True, metavar="FILE", help="config files to compare")
    parser.add_argument("--every", type=int, default=100, help="iterations between evaluations (default: 100)")
    parser.add_argument(
        "--iterations", nargs="+", type=int, metavar="N", help="instead of SOLVER.MAX_ITER: for all, or one each"
    )
    parser.add_argument("--metric", default="AP", choices=("AP", "AP50", "AP75"), help="what to compare (default: AP)")
    parser.add_argument(
        "--memorize", type=int, metavar="N", help="learn the first N images with objects, and evaluate on the same"
    )
    words, options = take_options(sys.argv[1:])
    args = parser.parse_args(words)
    args.opts += options
    sys.exit(run(main, args))
