#!/usr/bin/env python
"""Check a dataset before training: what is in it, what is wrong with it, and a picture of it."""

import argparse
import json
import os
import sys

from detectron2.utils.logger import setup_logger

from detr_d2.config.loading import load_config
from detr_d2.data.checks import (
    CheckResult,
    LoadedDataset,
    check_loaded,
    dataset_names,
    format_result,
    load_coco,
    load_registered,
)
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file
from detr_d2.visualization.dataset_preview import draw_preview

EXAMPLES = """
Errors make training or evaluation fail or wrong: the exit code is 1. Warnings (something is dropped or doubtful) and
notes leave it 0. docs/DATASET_CHECKS.md lists what is looked for.

examples:
  files in COCO's format:
    check_dataset.py --json train.json --images train/ --val-json val.json --val-images val/ --output checked
  the datasets of a config, with its number of classes and queries:
    check_dataset.py --config-file configs/detr_256_6_6_torchvision.yaml
  registered datasets, which are taken for training data:
    check_dataset.py --dataset coco_2017_train --skip-images
"""


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        datasets, num_classes, num_queries = load(args)
        result = check_loaded(datasets, num_classes, num_queries, open_images=not args.skip_images)
        text = format_result(result)
        print(text, end="")
        if args.output:
            write(args.output, result, text, datasets)
    except UserError as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    return 1 if any(finding.severity == "error" for finding in result.findings()) else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="annotations to train on, in COCO's format")
    parser.add_argument("--images", metavar="DIR", help="the folder of their images")
    parser.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    parser.add_argument("--val-images", metavar="DIR", help="the folder of their images (default: that of --images)")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="registered datasets")
    parser.add_argument("--config-file", metavar="FILE", help="check DATASETS.TRAIN and DATASETS.TEST of a config")
    parser.add_argument("--num-classes", type=int, help="of the model (default: the config's, or not checked)")
    parser.add_argument("--num-queries", type=int, help="of the model (default: the config's, or not checked)")
    parser.add_argument("--skip-images", action="store_true", help="don't open the image files: seconds, not minutes")
    parser.add_argument("--output", metavar="DIR", help="write report.txt, report.json and preview.png to this folder")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, with --config-file")
    return parser.parse_intermixed_args(arguments)


def load(args: argparse.Namespace) -> tuple[list[LoadedDataset], int | None, int | None]:
    """The datasets that the arguments name, and the model's numbers of classes and queries, where known."""
    if sum(map(bool, (args.json or args.val_json, args.dataset, args.config_file))) != 1:
        raise UserError("Give one of --json (with --images), --dataset and --config-file; see --help.")
    if args.opts and not args.config_file:
        raise UserError(f"{' '.join(args.opts)}: config keys go with --config-file.")
    num_classes, num_queries = args.num_classes, args.num_queries
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
        datasets = [load_registered(name, name in cfg.DATASETS.TRAIN, from_json=True) for name in dataset_names(cfg)]
        num_classes = cfg.MODEL.DETR.NUM_CLASSES if num_classes is None else num_classes
        num_queries = cfg.MODEL.DETR.NUM_OBJECT_QUERIES if num_queries is None else num_queries
    elif args.dataset:
        datasets = [load_registered(name, True, from_json=True) for name in args.dataset]
    else:
        datasets = load_files(args)
    return datasets, num_classes, num_queries


def load_files(args: argparse.Namespace) -> list[LoadedDataset]:
    val_images = args.val_images or args.images
    if (bool(args.json) and not args.images) or (bool(args.val_json) and not val_images):
        raise UserError("Give the folder of the images, too: --images, --val-images.")
    datasets = [load_coco(args.json, args.images, train=True)] if args.json else []
    return datasets + ([load_coco(args.val_json, val_images, train=False)] if args.val_json else [])


def write(folder: str, result: CheckResult, text: str, datasets: list[LoadedDataset]) -> None:
    """Write the report, as text and json, and a picture of every dataset."""
    try:
        os.makedirs(folder, exist_ok=True)
        for number, dataset in enumerate(datasets, start=1):
            name = "preview.png" if number == 1 else f"preview_{number}.png"
            with atomic_file(os.path.join(folder, name)) as file:
                draw_preview(dataset.records, dataset.classes).savefig(file, format="png")
        for name, content in (("report.json", json.dumps(result.to_dict(), indent=1)), ("report.txt", text)):
            with atomic_file(os.path.join(folder, name)) as file:
                file.write(content.encode())
    except OSError as e:
        raise UserError(f"--output {folder} can't be written: {e}.") from e


if __name__ == "__main__":
    setup_logger(name="detectron2")
    setup_logger(name="detr_d2")
    sys.exit(main())
