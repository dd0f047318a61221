"""Command ``check``, also tools/check_dataset.py: a dataset before training."""

import argparse
import json
import os
from functools import partial
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, add_config_file
from detr_d2.cli.command import run_command, start_process
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

if TYPE_CHECKING:
    from detr_d2.data.checks import CheckResult, LoadedDataset

DESCRIPTION = "Check a dataset before training: what it holds, what is wrong with it, and a preview of it."
EXAMPLES = """
Errors make training or evaluation fail or wrong: the exit code is 1. Warnings (something is dropped or doubtful) and
notes leave it 0. docs/DATASET_CHECKS.md lists what is looked for.

examples:
  files in COCO's format:
    detr-d2 check --train-json train.json --train-images train/ --val-json val.json --val-images val/ --output checked
  the datasets of a config, with its number of classes and queries:
    detr-d2 check --config-file detr_256_6_6_torchvision
  registered datasets, which are taken for training data:
    detr-d2 check --dataset coco_2017_train --skip-images
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("check", DESCRIPTION, EXAMPLES)
    parser.add_argument("--train-json", metavar="FILE", help="annotations to train on, in COCO's format")
    parser.add_argument("--train-images", metavar="DIR", help="the folder of their images")
    parser.add_alias("--train-json", "--json")
    parser.add_alias("--train-images", "--images")
    parser.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    parser.add_argument("--val-images", metavar="DIR", help="the folder of their images (default: --train-images)")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="registered datasets")
    add_config_file(parser)
    parser.add_argument("--num-classes", type=int, help="of the model (default: the config's, or not checked)")
    parser.add_argument("--num-queries", type=int, help="of the model (default: the config's, or not checked)")
    parser.add_argument("--skip-images", action="store_true", help="don't open the image files: seconds, not minutes")
    parser.add_argument("--output", metavar="DIR", help="write report.txt, report.json and preview.png to this folder")
    parser.add_config_keys()
    return parser


def run(args: argparse.Namespace) -> int:
    """Check, print the report and write it."""
    from detr_d2.data.checks import check_loaded, format_result

    start_process()
    datasets, num_classes, num_queries = load(args)
    result = check_loaded(datasets, num_classes, num_queries, open_images=not args.skip_images)
    text = format_result(result)
    print(text, end="")
    if args.output:
        write(args.output, result, text, datasets)
    return 1 if any(finding.severity == "error" for finding in result.findings()) else 0


def load(args: argparse.Namespace) -> tuple[list["LoadedDataset"], int | None, int | None]:
    """Return the datasets that the arguments name, and the model's numbers of classes and queries, where known."""
    from detr_d2.config import load_config
    from detr_d2.data.checks import dataset_names, load_registered

    if sum(map(bool, (args.train_json or args.val_json, args.dataset, args.config_file))) != 1:
        raise UserError("Give one of --train-json (with --train-images), --dataset and --config-file; see --help.")
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


def load_files(args: argparse.Namespace) -> list["LoadedDataset"]:
    """Return the datasets of the files that the arguments name."""
    from detr_d2.data.checks import load_coco

    val_images = args.val_images or args.train_images
    if (args.train_json and not args.train_images) or (args.val_json and not val_images):
        raise UserError("Give the folder of the images, too: --train-images, --val-images.")
    datasets = [load_coco(args.train_json, args.train_images, train=True)] if args.train_json else []
    return datasets + ([load_coco(args.val_json, val_images, train=False)] if args.val_json else [])


def write(folder: str, result: "CheckResult", text: str, datasets: list["LoadedDataset"]) -> None:
    """Write the report, as text and JSON, and a preview of every dataset."""
    from detr_d2.visualization.dataset_preview import draw_preview

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


main = partial(run_command, make_parser, run)
