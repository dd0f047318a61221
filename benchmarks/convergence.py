r"""Train several configs on the same data and show how their AP grows with the iterations.

Config keys as KEY VALUE hold for all configs. Every config gets a folder in the output folder; the table is in
convergence.md there, the curves in convergence.png.

Examples:
  does SMCA reach in 300 iterations what DETR reaches in 3000?
    detr-d2 benchmark convergence --config-file detr_shapes_cpu smca_shapes_cpu --iterations 3000 300 \
        --output output/convergence
  without a dataset that a small model could generalize from, by overfitting four images:
    DETECTRON2_DATASETS=path/to/datasets detr-d2 benchmark convergence --num-images 4 --metric AP50 \
        --config-file detr_128_2_3_cpu smca_128_2_3_cpu --iterations 300 --every 50
"""

import argparse
import json
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from detr_d2 import UserError
from detr_d2.cli.arguments import CommandParser, add_training_flags
from detr_d2.cli.command import Command, launch
from detr_d2.data import check_datasets, overfit_config
from detr_d2.engine import Trainer, setup
from detr_d2.visualization import plot_training


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--every", type=int, default=100, help="iterations between evaluations (default: 100)")
    parser.add_argument(
        "--iterations", nargs="+", type=int, metavar="N", help="instead of SOLVER.MAX_ITER: for all, or one each"
    )
    parser.add_argument("--metric", default="AP", choices=("AP", "AP50", "AP75"), help="what to compare (default: AP)")
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="overfit the first N images with objects, and evaluate on the same"
    )
    parser.add_alias("--num-images", "--memorize")
    add_training_flags(parser, required=True, nargs="+")
    parser.add_alias("--config-file", "--configs")


def compare(args: argparse.Namespace) -> None:
    """Train one config after the other, in one of the processes."""
    configs = args.config_file
    iterations = args.iterations or [None]
    if len(iterations) == 1:
        iterations = iterations * len(configs)
    if len(iterations) != len(configs):
        raise UserError(f"--iterations takes one number, or one for each of the {len(configs)} configs.")
    output = None
    curves = {}
    for config, count in zip(configs, iterations, strict=True):
        cfg = setup(argparse.Namespace(**{**vars(args), "config_file": config}))
        if args.num_images:
            # The trainer checks the images that are learned, not the dataset that they are of.
            check_datasets(cfg, test=False)
            cfg = overfit_config(cfg, args.num_images)
        output = Path(cfg.OUTPUT_DIR)
        name = Path(config).stem + (f" in {count}" if count else "")
        if name in curves:
            raise UserError(
                f"{config} is given twice in --config-file with the same number of iterations: once is enough."
            )
        curves[name] = train(schedule(cfg, output / name.replace(" ", "_"), count, args.every), args.metric)
    table = format_table(curves)
    (output / "convergence.md").write_text(table + "\n")
    runs = {name: output / name.replace(" ", "_") for name in curves}
    plot_training(runs, [f"bbox/{args.metric}", "total_loss"]).savefig(output / "convergence.png", dpi=150)
    print(table)


def schedule(cfg: CfgNode, folder: Path, iterations: int | None, every: int) -> CfgNode:
    """Return ``cfg`` with other iterations; the learning rate drops after the same share of them."""
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
    """Train, and return AP, or another metric of boxes, by the number of iterations done."""
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
    """Return a Markdown table: one row per evaluation and one column per config."""
    iterations = sorted({i for curve in curves.values() for i in curve})
    rows = [[i, *(curve.get(i) for curve in curves.values())] for i in iterations]
    return tabulate(rows, ["iterations", *curves], tablefmt="github", floatfmt=".1f")


main = Command("benchmark convergence", __doc__, _add_flags, partial(launch, compare))
