r"""Convert annotations of other formats to COCO's: Pascal VOC, YOLO, CVAT, Label Studio, LabelMe, VIA, COCO.

Recognizes the format, and prints what was dropped and why. Boxes and polygons are read; rotated boxes, circles, points
and lines are dropped (docs/OWN_DATA.md). The image files are opened for their size. Without --split and --val-fraction
the splits of the dataset are kept: --output is its training data, --val-output its validation data.

Examples:
  Pascal VOC, a folder of .xml files with the images in a folder beside it:
    detr-d2 import voc --output train.json
  YOLO, with the splits of data.yaml:
    detr-d2 import dataset/data.yaml --output train.json --val-output val.json
  an export of Label Studio; one fifth of the images is for validation:
    detr-d2 import project.json --images photos --output train.json --val-output val.json --val-fraction 0.2
  only two of the classes:
    detr-d2 import annotations.xml --classes cat,dog --output train.json
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_d2.cli.arguments import CommandParser, class_names
from detr_d2.cli.command import Command, start_process
from detr_d2.cli.import_via import summarize, write_all
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detr_d2.data.formats import AnnotatedDataset, AnnotatedImage

_ALL = "all"
_DEFAULT_FRACTION = 0.2


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("path", metavar="DIR_OR_FILE", help="annotations, or the folder that holds them")
    parser.add_argument("--output", required=True, metavar="FILE", help=".json file to write")
    parser.add_argument("--format", metavar="NAME", help="name of the format (default: recognized)")
    parser.add_argument("--images", metavar="DIR", help="folder of the images (default: in or beside that of the path)")
    parser.add_argument(
        "--classes", type=class_names, metavar="A,B,C", help="classes to keep, in the order of their ids"
    )
    parser.add_argument(
        "--split", metavar="NAME", help=f"split of the dataset to convert (default: train; {_ALL}: all)"
    )
    parser.add_argument("--val-output", metavar="FILE", help="second .json file, for validation")
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help=f"fraction of images for it (default: the dataset's split, or {_DEFAULT_FRACTION})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice of its images (default: 0)")
    parser.add_argument("--class-attribute", metavar="NAME", help="of VIA: region attribute with the class")
    parser.add_argument("--default-class", metavar="NAME", help="of VIA: class of regions without that attribute")


def run(args: argparse.Namespace) -> None:
    """Convert, write all files or none, and print a summary of each and the next command."""
    start_process()
    files, image_root, messages = convert(args)
    for message in messages:
        print(message)
    write_all(files)
    for path, coco in files.items():
        print(f"{path}: {summarize(coco)}")
    print(f"Next: {_next_command(args, image_root)}")


def convert(args: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], str, list[str]]:
    """Return the content of each file to write, the folder of the images, and lines about what was found."""
    from detr_d2.data.formats import Source, read_dataset, to_coco
    from detr_d2.data.split import split_images

    if args.val_output and Path(args.val_output).resolve() == Path(args.output).resolve():
        raise UserError(f"--output and --val-output are the same file, {args.output}: give two.")
    if args.val_fraction is not None and not args.val_output:
        raise UserError("--val-fraction goes with --val-output, the file of these images: give it.")
    images = None if args.images is None else Path(args.images)
    source = Source(Path(args.path), images, args.classes, args.class_attribute, args.default_class)
    found, dataset = read_dataset(source, args.format)
    parts, described = _choose(dataset, args)
    cocos, root = to_coco(dataset, parts, source)
    if args.val_output and len(cocos) == 1:
        fraction = _DEFAULT_FRACTION if args.val_fraction is None else args.val_fraction
        cocos = split_images(cocos[0], fraction, args.seed)
        described += f" {len(cocos[1]['images'])} images, chosen at random, are for validation."
    files = dict(zip(filter(None, (args.output, args.val_output)), cocos, strict=True))
    return files, root, [found, described, *source.notes.lines()]


def _choose(dataset: "AnnotatedDataset", args: argparse.Namespace) -> tuple[list[list["AnnotatedImage"]], str]:
    """Return the images for training and, if the dataset has a split for it, for validation; and a line about them."""
    from detr_d2.data.formats import pick_split

    splits = dataset.splits()
    listed = ", ".join(f"{name} {count}" for name, count in splits.items()) or "none"
    if args.split not in (None, _ALL, *splits):
        raise UserError(
            f"There is no split {args.split}. Those of {args.path}: {listed}; --split {_ALL} takes all images."
        )
    train = pick_split(splits, for_training=True) if args.split is None else args.split
    if train in (None, _ALL):
        return [list(dataset.images)], f"Splits: {listed}. All {len(dataset.images)} images are used."
    val = None
    if args.split is None and args.val_output and args.val_fraction is None:
        val = pick_split(splits, for_training=False)
    names = [train, *([val] if val else [])]
    return [dataset.select(name) for name in names], f"Splits (images): {listed}. Used: {', '.join(names)}."


def _next_command(args: argparse.Namespace, image_root: str) -> str:
    below = os.path.relpath(image_root)
    image_root = image_root if below.startswith(os.pardir) else below
    words = shlex.split("detr-d2 train --config-file finetune_r50 --output output/mine")
    words += ["--train-json", args.output, "--train-images", image_root]
    if args.val_output:
        words += ["--val-json", args.val_output, "--val-images", image_root]
    return shlex.join(words)


main = Command("import", __doc__, _add_flags, run)
