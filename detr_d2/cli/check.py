"""Check a dataset before training: print its statistics and faults, and draw a preview.

Errors, with which training or evaluation would fail or be wrong, make the exit code 1. With warnings (something is
dropped or doubtful) and notes it is 0. docs/DATASET_CHECKS.md lists the checks.

Examples:
  files in COCO's format:
    detr-d2 check --train-json train.json --train-images train/ --val-json val.json --val-images val/ --output checked
  files in another format, e.g. Pascal VOC:
    detr-d2 check --train-data voc/
  the datasets of a config, with its number of classes and queries:
    detr-d2 check --config-file detr_256_6_6_torchvision
  registered datasets, checked as training data:
    detr-d2 check --dataset coco_2017_train --skip-images
"""

import argparse
import io
import json
import os
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, add_conversion_arguments
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from matplotlib.figure import Figure

    from detr_d2.data.checks import LoadedDataset


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--train-json", metavar="FILE", help="annotations to train on, in COCO's format")
    parser.add_argument("--train-images", metavar="DIR", help="folder of their images")
    parser.add_alias("--train-json", "--json")
    parser.add_alias("--train-images", "--images")
    parser.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    parser.add_argument("--val-images", metavar="DIR", help="folder of their images (default: --train-images)")
    add_conversion_arguments(parser)
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="registered datasets")
    parser.add_config()
    for name in ("classes", "queries"):
        parser.add_argument(
            f"--num-{name}", type=int, metavar="N", help=f"{name} of the model (default: the config's, or not checked)"
        )
    parser.add_argument(
        "--channels", type=int, metavar="N", help="bands of the images, INPUT.CHANNELS (default: the config's, or 3)"
    )
    parser.add_argument("--skip-images", action="store_true", help="don't open the image files: seconds, not minutes")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="write report.txt, report.json and preview.png to this folder; with --config-file also training.png, "
        "images as training will see them",
    )


def run(args: argparse.Namespace) -> int:
    """Check, print the report and write it."""
    from detr_d2.config import file_channels
    from detr_d2.data.checks import check_loaded, format_result

    start_process()
    datasets, cfg = load(args)
    if args.channels is None:
        args.channels = 3 if cfg is None else file_channels(cfg)
    result = check_loaded(
        datasets, args.num_classes, args.num_queries, open_images=not args.skip_images, channels=args.channels
    )
    text = format_result(result)
    print(text, end="")
    if args.output:
        reports = {"report.json": json.dumps(result.to_dict(), indent=1).encode(), "report.txt": text.encode()}
        write(args.output, {**draw(datasets, cfg, args.channels), **reports})
    return 1 if any(finding.severity == "error" for finding in result.findings()) else 0


def load(args: argparse.Namespace) -> tuple[list["LoadedDataset"], "CfgNode | None"]:
    """Load the datasets that the arguments name, and the config if they name one.

    The numbers of classes and queries in ``args`` are completed from the config.
    """
    from detr_d2.config import load_config
    from detr_d2.data.checks import dataset_names, load_coco, load_registered
    from detr_d2.engine.data_conversion import convert_data

    for message in convert_data(args):
        print(message)
    if sum(map(bool, (args.train_json or args.val_json, args.dataset, args.config_file))) != 1:
        raise UserError(
            "Give one of --train-json (with --train-images), --train-data, --dataset and --config-file; see --help."
        )
    if args.opts and not args.config_file:
        raise UserError(f"{' '.join(args.opts)}: config keys go with --config-file.")
    if args.config_file:
        cfg = load_config(args.config_file, args.opts, trust=args.trust)
        if args.num_classes is None:
            args.num_classes = cfg.MODEL.DETR.NUM_CLASSES
        if args.num_queries is None:
            args.num_queries = cfg.MODEL.DETR.NUM_OBJECT_QUERIES
        return [load_registered(name, name in cfg.DATASETS.TRAIN, from_json=True) for name in dataset_names(cfg)], cfg
    if args.dataset:
        return [load_registered(name, True, from_json=True) for name in args.dataset], None
    val_images = args.val_images or args.train_images
    if (args.train_json and not args.train_images) or (args.val_json and not val_images):
        raise UserError("Give the folder of the images, too: --train-images, --val-images.")
    files = ((args.train_json, args.train_images, True), (args.val_json, val_images, False))
    return [load_coco(file, images, train=train) for file, images, train in files if file], None


def draw(datasets: list["LoadedDataset"], cfg: "CfgNode | None", channels: int = 3) -> dict[str, bytes]:
    """Draw a preview of every dataset and, with a config, of its training images; PNG by name of the file."""
    from detectron2.utils.env import seed_all_rng

    from detr_d2.data import build_training_mapper
    from detr_d2.visualization.dataset_preview import draw_preview

    images = {}
    seed_all_rng(0)
    for number, dataset in enumerate(datasets, start=1):
        if not dataset.records:
            continue
        suffix = "" if number == 1 else f"_{number}"
        images[f"preview{suffix}.png"] = _to_png(draw_preview(dataset.records, dataset.classes, channels=channels))
        if cfg is not None and dataset.train:
            mapper = build_training_mapper(cfg, dataset.records)
            figure = draw_preview(dataset.records, dataset.classes, mapper, cfg.INPUT.FORMAT)
            images[f"training{suffix}.png"] = _to_png(figure)
    return images


def _to_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write(folder: str, files: dict[str, bytes]) -> None:
    """Write the files, content by name."""
    try:
        os.makedirs(folder, exist_ok=True)
        for name, content in files.items():
            with atomic_file(os.path.join(folder, name)) as file:
                file.write(content)
    except OSError as e:
        raise UserError(f"--output {folder} can't be written: {e}.") from e


main = Command("check", __doc__, _add_flags, run)
