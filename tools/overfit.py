#!/usr/bin/env python
"""Learn a handful of images by heart: the quickest proof that data, config and model go together."""

import argparse
import sys

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from detr_d2.data import check_datasets
from detr_d2.engine import Trainer, run, setup
from detr_d2.errors import UserError

EXAMPLES = """
Takes the first images with objects of DATASETS.TRAIN, trains on them without augmentation and evaluates
on the same images. A model and dataset that are in order end with AP50 near 100.

example:
  DETECTRON2_DATASETS=path/to/datasets python tools/overfit.py --config-file configs/detr_128_2_3_cpu.yaml
"""


def main(args: argparse.Namespace) -> dict:
    cfg = setup(args)
    check_datasets(cfg)
    name = register_first_images(cfg.DATASETS.TRAIN[0], args.num_images)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.TEST.EVAL_PERIOD = 0
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def register_first_images(dataset: str, count: int) -> str:
    """Register the first ``count`` images of ``dataset`` that have an object; returns the new name."""
    images = [x for x in DatasetCatalog.get(dataset) if any(not a.get("iscrowd", 0) for a in x["annotations"])][:count]
    if len(images) < count:
        raise UserError(f"--num-images is {count}, but '{dataset}' has only {len(images)} images with objects.")
    name = f"{dataset}_first_{count}"
    DatasetCatalog.register(name, lambda: images)
    source = MetadataCatalog.get(dataset)
    MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=source.thing_classes)
    return name


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.add_argument("--num-images", type=int, default=4, help="how many images to learn (default: 4)")
    sys.exit(run(main, parser.parse_args()))
