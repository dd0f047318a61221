"""Command ``train``, also train_net.py: training, or evaluation with --eval-only."""

import argparse
from functools import partial

from detr_d2.cli.arguments import CommandParser, add_config_file, add_data_arguments, add_training_flags
from detr_d2.cli.command import run_command

EXAMPLES = """
examples:
  train on COCO with eight GPUs:
    detr-d2 train --config-file detr_256_6_6_torchvision --num-gpus 8
  continue after an interruption:
    detr-d2 train --config-file detr_256_6_6_torchvision --num-gpus 8 --resume
  fine-tune on your own images, annotated in COCO's format (docs/OWN_DATA.md):
    detr-d2 train --config-file finetune_r50 --train-json train.json --train-images train/ \\
        --val-json val.json --val-images val/ --output output/mine
  try it without a dataset, on rendered shapes on a CPU:
    detr-d2 train --config-file smca_shapes_cpu MODEL.DEVICE cpu SOLVER.MAX_ITER 100 --output output/trial
  evaluate weights:
    detr-d2 eval --config-file detr-r50 MODEL.WEIGHTS detr://detr-r50
any config key can be added as KEY VALUE: MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("train", "Train a model that a config describes, on one or several GPUs or CPUs.", EXAMPLES)
    add_config_file(parser)
    add_training_flags(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, as the command eval does")
    return add_data_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Start the processes."""
    from detr_d2.engine import launch_processes

    launch_processes(evaluate if args.eval_only else train, args)


def train(args: argparse.Namespace) -> None:
    """Train, in one of the processes."""
    from detr_d2.engine import Trainer, setup

    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate ``MODEL.WEIGHTS``, in one of the processes."""
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from detr_d2.checkpoint import DetrCheckpointer
    from detr_d2.data import check_datasets
    from detr_d2.engine import Trainer, class_names, loading_options, setup
    from detr_d2.inference import inference_options, optimize_for_inference

    cfg = setup(args)
    check_datasets(cfg, train=False)
    model = Trainer.build_model(cfg)
    checkpointer = DetrCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=class_names(cfg.DATASETS.TEST),
        allow_new_head=False,
        **loading_options(cfg),
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    model = optimize_for_inference(model, **inference_options(cfg))
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


main = partial(run_command, make_parser, run)
