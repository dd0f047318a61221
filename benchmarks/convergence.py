r"""Train several configs, or variants of one, on the same data, and show how their AP grows.

Config keys as KEY VALUE hold for all runs. Every run gets a folder in the output folder; the tables are in
convergence.md there, the curves in convergence.png.

Variants are the entries of a YAML file, each a name with the config keys that differ; ablation.yaml beside this module
holds those of docs/TRAINING_RECIPES.md:
  "groups": {MODEL.DETR.QUERY_GROUPS: 5, MODEL.DETR.NUM_OBJECT_QUERIES: 30}

With --minutes every run takes the same time: its number of iterations is chosen by the time of some steps of its
variant. All variants are timed before the first run, twice in turn, and the faster time counts: another program that
starts meanwhile slows a run down, and changes no result.
The tables and curves are means of the seeds; with --minutes the curves are drawn over the training time.
With --resume the runs that have ended in the output folder are not repeated.

Examples:
  does SMCA reach in 300 iterations what DETR reaches in 3000?
    detr-d2 benchmark convergence --config-file detr_shapes_cpu smca_shapes_cpu --iterations 3000 300 \
        --output output/convergence
  without a dataset that a small model could generalize from, by overfitting four images:
    DETECTRON2_DATASETS=path/to/datasets detr-d2 benchmark convergence --num-images 4 --metric AP50 \
        --config-file detr_128_2_3_cpu smca_128_2_3_cpu --iterations 300 --every 50
  what does each part of the training gain in four minutes?
    detr-d2 benchmark convergence --config-file smca_shapes_cpu --variants benchmarks/ablation.yaml --minutes 4 \
        --seeds 2 --num-gpus 2 --output output/ablation
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from detr_d2 import UserError
from detr_d2.cli.arguments import CommandParser, add_data_arguments, add_training_flags
from detr_d2.cli.command import Command, launch
from detr_d2.data import check_datasets, overfit_config
from detr_d2.engine import Trainer, setup
from detr_d2.utils.files import read_json, write_json
from detr_d2.visualization import plot_curves

# Steps that are made, and of these those at the end that are timed, to tell how many fit into some minutes.
_STEPS, _TIMED_STEPS = 15, 10
# In the folder of a run that has ended; and in the output folder.
_RESULT, _STEP_TIMES = "result.json", "step_times.json"


class Run(NamedTuple):
    """One training run."""

    name: str
    """Of the config and the variant; runs that differ in the seed alone share it."""
    cfg: CfgNode
    iterations: int | None
    """Instead of SOLVER.MAX_ITER."""
    seed: int


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--every", type=int, metavar="N", help="iterations between evaluations (default: a fifth)")
    parser.add_argument(
        "--iterations",
        nargs="+",
        type=int,
        metavar="N",
        help="instead of SOLVER.MAX_ITER: for all configs, or one each",
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="training time of each run, evaluation excluded")
    parser.add_argument("--variants", metavar="FILE", help="YAML file of variants of each config")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each variant (default: 1)")
    parser.add_argument("--metric", default="AP", choices=("AP", "AP50", "AP75"), help="what to compare (default: AP)")
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="overfit the first N images with objects, and evaluate on the same"
    )
    parser.add_alias("--num-images", "--memorize")
    add_training_flags(parser, required=True, nargs="+")
    parser.add_alias("--config-file", "--configs")
    add_data_arguments(parser)


def compare(args: argparse.Namespace) -> None:
    """Train the runs one after the other; every process executes this."""
    runs = list_runs(args)
    output = Path(runs[0].cfg.OUTPUT_DIR)
    results: dict[str, list[dict[str, Any]]] = {}
    steps = step_times(runs, output / _STEP_TIMES, args.resume) if args.minutes else {}
    for run in runs:
        label = run.name if args.seeds == 1 else f"{run.name}, seed {run.seed}"
        folder = output / label.replace(" ", "_")
        ended = folder / _RESULT
        result = read_json(ended) if args.resume and ended.exists() else _run(args, run, folder, steps.get(run.name))
        result["curve"] = {int(iteration): value for iteration, value in result["curve"].items()}
        results.setdefault(run.name, []).append(result)
    if not comm.is_main_process():
        return
    curves = {name: [x["curve"] for x in of_seeds] for name, of_seeds in results.items()}
    summary = format_summary(results)
    text = f"{summary}\n" if args.minutes else f"{format_table(curves)}\n\n{summary}\n"
    (output / "convergence.md").write_text(text)
    means = {name: mean_curve(of_seeds, bool(args.minutes)) for name, of_seeds in results.items()}
    x_label = "minutes of training" if args.minutes else "iterations"
    plot_curves(means, f"Box {args.metric}", x_label).savefig(output / "convergence.png", dpi=150)
    print(text, end="")


def _run(args: argparse.Namespace, run: Run, folder: Path, seconds: float | None) -> dict[str, Any]:
    """Train, write what the tables need to a file in the folder, and return it; ``seconds``: time of a step."""
    iterations = max(1, round(60 * args.minutes / seconds)) if seconds else run.iterations
    cfg = schedule(run.cfg, folder, iterations, args.every)
    curve, metrics = train(cfg, run.seed, args.metric)
    result = {"iterations": cfg.SOLVER.MAX_ITER, "seconds": seconds, "curve": curve, "metrics": metrics}
    if comm.is_main_process():
        write_json(folder / _RESULT, result)
    return result


def list_runs(args: argparse.Namespace) -> list[Run]:
    """Return every config with every variant and every seed."""
    configs = args.config_file
    iterations = args.iterations or [None]
    if len(iterations) == 1:
        iterations = iterations * len(configs)
    if len(iterations) != len(configs):
        raise UserError(f"--iterations takes one number, or one for each of the {len(configs)} configs.")
    if args.iterations and args.minutes:
        raise UserError("Give --iterations or --minutes, not both.")
    variants = read_variants(args.variants) if args.variants else {"": []}
    runs = []
    for config, count in zip(configs, iterations, strict=True):
        for variant, options in variants.items():
            cfg = setup(argparse.Namespace(**{**vars(args), "config_file": config, "opts": [*args.opts, *options]}))
            if args.num_images:
                # The trainer checks the images that are learned, not the dataset that they are of.
                check_datasets(cfg, test=False)
                cfg = overfit_config(cfg, args.num_images)
            stem = Path(config).stem if len(configs) > 1 or not variant else ""
            name = " ".join(x for x in (stem, variant, f"in {count}" if count else "") if x)
            if any(name == run.name for run in runs):
                raise UserError(
                    f"{config} is given twice in --config-file with the same number of iterations: once is enough."
                )
            runs += [Run(name, cfg, count, seed) for seed in range(1, args.seeds + 1)]
    return runs


def read_variants(file: str) -> dict[str, list[str]]:
    """Return the config keys and values of each variant, by its name."""
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError) as e:
        raise UserError(f"--variants {file} can't be read: {e}") from e
    if not isinstance(content, dict) or not all(isinstance(x, dict) for x in content.values()):
        raise UserError(
            f"--variants {file}: write one line per variant, such as groups: {{MODEL.DETR.QUERY_GROUPS: 3}}"
        )
    return {str(name): [str(x) for pair in keys.items() for x in pair] for name, keys in content.items()}


def schedule(cfg: CfgNode, folder: Path, iterations: int | None, every: int | None) -> CfgNode:
    """Return ``cfg`` with other iterations; the learning rate drops after the same share of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    if iterations:
        share = iterations / cfg.SOLVER.MAX_ITER
        cfg.SOLVER.STEPS = tuple(int(step * share) for step in cfg.SOLVER.STEPS)
        cfg.SOLVER.MAX_ITER = iterations
    cfg.TEST.EVAL_PERIOD = every or max(1, cfg.SOLVER.MAX_ITER // 5)
    cfg.freeze()
    return cfg


def step_times(runs: Sequence[Run], file: Path, resume: bool) -> dict[str, float]:
    """Return the seconds per step by the name of a run; those that ``file`` holds are kept if ``resume``."""
    times = read_json(file) if resume and file.exists() else {}
    cfgs = {run.name: run.cfg for run in runs if run.name not in times}
    rounds = [{name: seconds_per_step(cfg) for name, cfg in cfgs.items()} for _ in range(2)]
    times |= {name: min(x[name] for x in rounds) for name in cfgs}
    comm.synchronize()
    if comm.is_main_process():
        write_json(file, times)
    return times


def seconds_per_step(cfg: CfgNode) -> float:
    """Return the mean time of a training step, loading included, in the slowest of the processes."""
    # The same images for all variants, whose sizes differ.
    seed_all_rng(1 + comm.get_rank())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    first = _STEPS - _TIMED_STEPS
    with EventStorage():
        for step in range(_STEPS):
            if step == first:
                comm.synchronize()
                started = time.perf_counter()
            # Of the whole training: progressive resizing makes its first steps cheaper.
            trainer.iter = trainer.max_iter * max(step - first, 0) // _TIMED_STEPS
            trainer.run_step()
    seconds = (time.perf_counter() - started) / _TIMED_STEPS
    trainer._trainer.end_loading()
    return max(comm.all_gather(seconds))


def train(cfg: CfgNode, seed: int, metric: str) -> tuple[dict[int, float], dict[str, float]]:
    """Train, and return AP, or another metric of boxes, by the number of iterations done, and the final metrics."""
    folder = Path(cfg.OUTPUT_DIR)
    metrics = folder / "metrics.json"
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        metrics.unlink(missing_ok=True)
    comm.synchronize()
    seed_all_rng(seed + comm.get_rank())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train() or {}
    if not comm.is_main_process():
        return {}, {}
    key = f"bbox/{metric}"
    lines = map(json.loads, metrics.read_text().splitlines())
    # The last evaluation comes after the last iteration, and counts it once more.
    curve = {min(x["iteration"] + 1, cfg.SOLVER.MAX_ITER): x[key] for x in lines if key in x}
    return curve, results.get("bbox", {})


def format_table(curves: dict[str, list[dict[int, float]]]) -> str:
    """Return a Markdown table: one row per evaluation and one column per config, averaged over the seeds."""
    iterations = sorted({i for runs in curves.values() for curve in runs for i in curve})
    rows = [[i, *(_mean([curve.get(i) for curve in runs]) for runs in curves.values())] for i in iterations]
    return tabulate(rows, ["iterations", *curves], tablefmt="github", floatfmt=".1f")


def format_summary(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table with one row per variant: the final metrics, averaged over the seeds, and AP of each."""
    rows = []
    for name, of_seeds in results.items():
        metrics = (_mean([x["metrics"].get(key) for x in of_seeds]) for key in ("AP", "AP50", "AP75"))
        each = ", ".join(f"{x['metrics'].get('AP', math.nan):.1f}" for x in of_seeds)
        rows.append([name, of_seeds[0]["iterations"], of_seeds[0]["seconds"], *metrics, each])
    headers = ["run", "iterations", "s per iteration", "AP", "AP50", "AP75", "AP of each seed"]
    floats = ("", "", ".3f", ".1f", ".1f", ".1f", "")
    return tabulate(rows, headers, tablefmt="github", floatfmt=floats, disable_numparse=[6])


def mean_curve(of_seeds: list[dict[str, Any]], in_minutes: bool) -> dict[float, float | None]:
    """Return the mean metric of a variant's runs by iterations, or by the minutes that these take in training."""
    first = of_seeds[0]
    unit = first["seconds"] / 60 if in_minutes else 1
    return {i * unit: _mean([x["curve"].get(i) for x in of_seeds]) for i in sorted(first["curve"])}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


main = Command("benchmark convergence", __doc__, _add_flags, partial(launch, compare))
