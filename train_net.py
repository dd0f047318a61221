#!/usr/bin/env python
"""Train DETR, or evaluate it with --eval-only."""

import sys

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.data import check_datasets
from detr_d2.engine import Trainer, add_data_arguments, class_names, loading_options, run, setup
from detr_d2.inference import inference_options, optimize_for_inference

EXAMPLES = """
examples:
  train on COCO with eight GPUs:
    train_net.py --config-file configs/detr_256_6_6_torchvision.yaml --num-gpus 8
  evaluate published or own weights:
    train_net.py --config-file configs/detr_256_6_6_torchvision.yaml --eval-only MODEL.WEIGHTS detr-r50-e632da11.pth
  the same in less time (docs/INFERENCE.md):
    train_net.py --config-file configs/detr_256_6_6_torchvision.yaml --eval-only MODEL.WEIGHTS detr-r50-e632da11.pth \\
        MODEL.DETR.TEST.COMPILE True MODEL.DETR.TEST.PRECISION bfloat16
  go on after an interruption:
    train_net.py --config-file configs/detr_256_6_6_torchvision.yaml --num-gpus 8 --resume
  fine-tune on your own images, annotated in COCO's format (docs/OWN_DATA.md tells the rest):
    train_net.py --config-file configs/finetune_r50.yaml --train-json train.json --train-images train/ \\
        --val-json val.json --val-images val/ OUTPUT_DIR output/mine
  any config key can follow as KEY VALUE: MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 OUTPUT_DIR output/trial
"""


def main(args):
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()

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
    return results


if __name__ == "__main__":
    sys.exit(run(main, add_data_arguments(default_argument_parser(epilog=EXAMPLES)).parse_args()))
