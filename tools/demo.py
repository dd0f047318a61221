#!/usr/bin/env python
"""Train a small DETR on drawn shapes in minutes, and show in a report what it has learned."""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detr_d2.engine import ProgressBar, Trainer, run, setup
from detr_d2.engine.demo_report import write_report
from detr_d2.utils.precision import has_bfloat16_products

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """
Draws the dataset (the first time), trains, evaluates on held-out images and writes OUTPUT_DIR/report.html, which holds
all of its pictures. Without a GPU it takes some ten minutes on two CPU cores: a process on each, computing in bfloat16
where they can and in float32 elsewhere, which takes longer.

examples:
  python tools/demo.py
  a quick look, before anything is learned:
    python tools/demo.py SOLVER.MAX_ITER 60 SOLVER.STEPS "(50,)" TEST.EVAL_PERIOD 30
"""


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.register_hooks([ProgressBar()])
    trainer.resume_or_load(resume=args.resume)
    started = time.perf_counter()
    results = trainer.train()
    if not comm.is_main_process():
        return
    minutes = (time.perf_counter() - started) / 60
    report = write_report(trainer, results, minutes, " ".join(["python tools/demo.py", *sys.argv[1:]]))
    print(f"Trained for {minutes:.1f} minutes: box AP {results['bbox']['AP']:.1f}, AP50 {results['bbox']['AP50']:.1f}.")
    print(f"The report: {report}")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.set_defaults(config_file=str(ROOT / "configs" / "smca_shapes_cpu.yaml"), dist_url="auto")
    if torch.cuda.is_available():
        options = ["MODEL.DEVICE", "cuda"]
    else:
        # Two processes with half of the cores each are a third faster than one; loading is quick beside them.
        parser.set_defaults(num_gpus=min(2, os.cpu_count()))
        amp = str(has_bfloat16_products())
        options = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", amp, "DATALOADER.NUM_WORKERS", "0"]
    args = parser.parse_args()
    args.opts = [*options, "OUTPUT_DIR", "output/demo", *args.opts]
    sys.exit(run(main, args))
