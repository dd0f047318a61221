r"""Convert annotations of the VGG Image Annotator (VIA 1 and 2) to COCO's format.

Reads annotations that VIA exported as JSON, or a project of VIA 2; polygons, rectangles, circles and ellipses. The
image files are opened for their size. Class ids count from 1 in alphabetical order, or in that of --categories.

Examples:
  the class of a region is in its attribute "name":
    detr-d2 import-via --input via.json --images photos --class-attribute name --output photos.json
  the regions have no attributes, and all are balloons; one fifth of the images is for validation:
    detr-d2 import-via --input via_region_data.json --images balloon --default-class balloon \
        --output train.json --val-output val.json --val-share 0.2
  separate validation data, with the classes, in the order, of the training data:
    detr-d2 import-via --input val_via.json --images val --categories cat,dog,horse --output val.json
"""

import argparse
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detr_d2.cli.arguments import CommandParser, class_names
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError, abbreviate
from detr_d2.utils.files import atomic_file


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--input", metavar="FILE", help="project or annotations saved by VIA")
    parser.add_argument("via", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--output", required=True, metavar="FILE", help=".json file to write")
    parser.add_argument("--class-attribute", metavar="NAME", help="attribute with the class (default: the only one)")
    parser.add_argument("--default-class", metavar="NAME", help="class of regions without that attribute")
    parser.add_argument(
        "--categories", type=class_names, metavar="A,B,C", help="all classes, in the order of their ids"
    )
    parser.add_argument("--skip-unsupported", action="store_true", help="leave out points, lines and polylines")
    parser.add_argument("--val-output", metavar="FILE", help="second .json file, for validation")
    parser.add_argument("--val-share", type=float, default=0.2, metavar="X", help="its share of images (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice of its images (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Convert, write all files or none, and print a summary of each."""
    start_process()
    files = convert(args)
    write_all(files)
    for path, coco in files.items():
        print(f"{path}: {summarize(coco)}")


def write_all(files: dict[str, dict[str, Any]]) -> None:
    """Write all JSON files, content by path, or none."""
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                stack.enter_context(atomic_file(path)).write(json.dumps(content).encode())
    except OSError as e:
        raise UserError(f"{' and '.join(files)} can't be written ({e}): give files in a folder that exists.") from e


def convert(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the content of each file to write."""
    from detr_d2.data.split import split_images
    from detr_d2.data.via import ViaClasses, read_via, via_to_coco

    path = args.input or args.via
    if not path:
        raise UserError("Give the project or annotations saved by VIA: --input FILE.")
    if args.val_output and Path(args.val_output).resolve() == Path(args.output).resolve():
        raise UserError(f"--output and --val-output are the same file, {args.output}: give two.")
    classes = ViaClasses(args.class_attribute, args.default_class, args.categories)
    coco = via_to_coco(read_via(path), args.images, classes, args.skip_unsupported)
    if not args.val_output:
        return {args.output: coco}
    return dict(zip((args.output, args.val_output), split_images(coco, args.val_share, args.seed), strict=True))


def summarize(coco: dict[str, Any]) -> str:
    """Return one line of counts."""
    images, objects, categories = coco["images"], coco["annotations"], coco["categories"]
    counts = Counter(x["category_id"] for x in objects)
    empty = len(images) - len({x["image_id"] for x in objects})
    classes = abbreviate([f"{x['name']} {counts[x['id']]}" for x in categories], limit=25)
    counted = f"{len(images)} images ({empty} without objects), {len(objects)} objects of {len(categories)} classes"
    return f"{counted}: {classes}"


main = Command("import-via", __doc__, _add_flags, run)
