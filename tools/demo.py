#!/usr/bin/env python
"""Train a small DETR on drawn shapes in minutes, and show in a report what it has learned."""

import argparse
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser

from detr_d2.engine import ProgressBar, Trainer, run, setup
from detr_d2.engine.demo_report import write_report
from detr_d2.precision import has_bfloat16_products

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """
Draws the dataset (the first time), trains, evaluates on held-out images and writes OUTPUT_DIR/report.html, which holds
all of its pictures. Without a GPU it takes some ten minutes on two CPU cores, computing in bfloat16 where they can
and in float32 elsewhere, which takes longer.

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
    minutes = (time.perf_counter() - started) / 60
    report = write_report(trainer, results, minutes, " ".join(["python tools/demo.py", *sys.argv[1:]]))
    print(f"Trained for {minutes:.1f} minutes: box AP {results['bbox']['AP']:.1f}, AP50 {results['bbox']['AP50']:.1f}.")
    print(f"The report: {report}")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.set_defaults(config_file=str(ROOT / "configs" / "smca_shapes_cpu.yaml"))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    amp = device == "cpu" and has_bfloat16_products()
    args.opts = ["MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", str(amp), "OUTPUT_DIR", "output/demo", *args.opts]
    sys.exit(run(main, args))
