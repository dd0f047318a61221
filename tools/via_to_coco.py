#!/usr/bin/env python
"""Convert annotations of the VGG Image Annotator (VIA 1 and 2) to COCO's format."""

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from detr_d2.data.via import ViaClasses, read_via, split_images, via_to_coco
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file

EXAMPLES = """
Takes annotations that VIA exported as json, or a project of VIA 2; polygons, rectangles, circles and ellipses. The
image files are opened for their size. Classes get ids from 1 in alphabetical order, unless --categories says otherwise.

examples:
  the class of a region stands in its attribute "name":
    via_to_coco.py via.json --images photos --class-attribute name --output photos.json
  the regions have no attributes, and all are balloons; one fifth of the images is for validation:
    via_to_coco.py via_region_data.json --images balloon --default-class balloon \\
        --output train.json --val-output val.json --val-share 0.2
  validation data of their own, with the classes, in the order, of the training data:
    via_to_coco.py val_via.json --images val --categories cat,dog,horse --output val.json
"""


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    setup_logger(name="detr_d2")
    try:
        files = convert(args)
        write(files)
    except UserError as e:
        sys.exit(f"error: {e}")
    for path, coco in files.items():
        print(f"{path}: {summarize(coco)}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("via", metavar="VIA.json", help="what VIA saved or exported")
    parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")
    parser.add_argument("--output", required=True, metavar="FILE", help="the json file to write")
    parser.add_argument(
        "--class-attribute", metavar="NAME", help="region attribute with the class; the only one needs no telling"
    )
    parser.add_argument("--default-class", metavar="NAME", help="class of regions without that attribute")
    parser.add_argument("--categories", metavar="A,B,C", help="all classes, in the order of their ids")
    parser.add_argument("--skip-unsupported", action="store_true", help="leave out points, lines and polylines")
    parser.add_argument(
        "--val-output", metavar="FILE", help="a second json file, with some of the images for validation"
    )
    parser.add_argument("--val-share", type=float, default=0.2, metavar="X", help="their share (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="for choosing them (default: 0)")
    return parser


def convert(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The content of each file to write."""
    if args.val_output and Path(args.val_output).resolve() == Path(args.output).resolve():
        raise UserError(f"--output and --val-output are one file, {args.output}: give two.")
    names = None if args.categories is None else [name.strip() for name in args.categories.split(",")]
    classes = ViaClasses(args.class_attribute, args.default_class, names)
    coco = via_to_coco(read_via(args.via), args.images, classes, args.skip_unsupported)
    if not args.val_output:
        return {args.output: coco}
    return dict(zip((args.output, args.val_output), split_images(coco, args.val_share, args.seed), strict=True))


def write(files: dict[str, dict[str, Any]]) -> None:
    """All files or none."""
    try:
        with ExitStack() as stack:
            for path, coco in files.items():
                stack.enter_context(atomic_file(path)).write(json.dumps(coco).encode())
    except OSError as e:
        raise UserError(f"{' and '.join(files)} can't be written ({e}): give files in a folder that exists.") from e


def summarize(coco: dict[str, Any]) -> str:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    counts = Counter(annotation["category_id"] for annotation in coco["annotations"])
    empty = len(coco["images"]) - len({annotation["image_id"] for annotation in coco["annotations"]})
    classes = ", ".join(f"{name} {counts[number]}" for number, name in names.items())
    images, objects = len(coco["images"]), len(coco["annotations"])
    return f"{images} images ({empty} without objects), {objects} objects of {len(names)} classes: {classes}"


if __name__ == "__main__":
    main()
