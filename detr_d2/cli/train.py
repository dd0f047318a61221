r"""Train a model that a config describes, on one or several GPUs or CPUs.

Examples:
  train on COCO with eight GPUs:
    detr-d2 train --config-file detr_256_6_6_torchvision --num-gpus 8
  continue after an interruption:
    detr-d2 train --config-file detr_256_6_6_torchvision --num-gpus 8 --resume
  fine-tune on your own images, annotated in COCO's format (docs/OWN_DATA.md):
    detr-d2 train --config-file finetune_r50 --train-json train.json --train-images train/ \
        --val-json val.json --val-images val/ --output output/mine
  the same on a folder of another format (Pascal VOC, YOLO, CVAT, Label Studio, LabelMe, VIA), with its splits:
    detr-d2 train --config-file finetune_r50 --train-data voc/ --output output/mine
  try it without a dataset, on rendered shapes on a CPU:
    detr-d2 train --config-file smca_shapes_cpu MODEL.DEVICE cpu SOLVER.MAX_ITER 100 --output output/trial
  evaluate weights:
    detr-d2 eval --config-file detr-r50 MODEL.WEIGHTS detr://detr-r50
  with a LazyConfig, a Python file, which is run (docs/LAZYCONFIG.md); your own needs --trust:
    detr-d2 train --config-file lazy/smca_shapes_cpu train.max_iter=100 model.network.num_queries=50
any config key can be added as KEY VALUE: MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2
"""

import argparse

from detr_d2.cli.arguments import CommandParser, add_data_arguments, add_training_flags
from detr_d2.cli.command import Command, launch


def _add_flags(parser: CommandParser) -> None:
    add_training_flags(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, as the command eval does")
    add_data_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Start the processes."""
    return launch(evaluate if args.eval_only else train, args)


def train(args: argparse.Namespace) -> None:
    """Train in one of the processes."""
    from detr_d2.config.lazy import is_lazy_config
    from detr_d2.engine import ProgressBar, Trainer, setup
    from detr_d2.engine.lazy_trainer import LazyTrainer, setup_lazy

    trainer = LazyTrainer(setup_lazy(args)) if is_lazy_config(args.config_file) else Trainer(setup(args))
    trainer.register_hooks([ProgressBar()])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate ``MODEL.WEIGHTS``, a checkpoint or an exported model, in one of the processes."""
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from detr_d2.checkpoint import DetrCheckpointer
    from detr_d2.config.lazy import is_lazy_config
    from detr_d2.data import check_datasets
    from detr_d2.engine import Trainer, class_names, loading_options, setup
    from detr_d2.engine.lazy_trainer import evaluate_checkpoint, setup_lazy
    from detr_d2.export import is_exported, prepare_for_inference, use_exported

    if is_lazy_config(args.config_file):
        evaluate_checkpoint(setup_lazy(args), resume=args.resume)
        return
    cfg = setup(args)
    names = class_names(cfg.DATASETS.TEST)
    if is_exported(cfg.MODEL.WEIGHTS):
        model = use_exported(cfg)
        check_datasets(cfg, train=False)
    else:
        check_datasets(cfg, train=False)
        model = Trainer.build_model(cfg)
        options = {"class_names": names, "allow_new_head": False, **loading_options(cfg)}
        DetrCheckpointer(model, cfg.OUTPUT_DIR, **options).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        model = prepare_for_inference(model, cfg, names)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


main = Command("train", __doc__, _add_flags, run)
