"""Convert a checkpoint to detr_d2's names, the original DETR's, or those of the transformers library. See --help."""

import argparse
import sys

import detr_d2  # noqa: F401  (registers the model that the result is checked against)
from detr_d2.checkpoint.conversion import convert_checkpoint
from detr_d2.checkpoint.export import TARGETS
from detr_d2.utils.errors import UserError

DESCRIPTION = """\
Convert a checkpoint of a DETR (R18 to R152, box models; of segmentation and panoptic models the box part) or SMCA:
the original's or the authors' files, those of the transformers library, of the original's Detectron2 wrapper, and our
own. The result is checked, name by name and shape by shape, against the model that it is for before anything is
written. MODEL.WEIGHTS takes all of these files just as well; a converted one is smaller, holds the class names, and can
be read by other tools. No tensor tells whether a model is a DC5 model, or how many heads its attention has: say so.
"""
EXAMPLES = """\
examples:
  python converter.py --source_model https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth \\
      --output_model weights/detr-r50.pth
  python converter.py --source_model detr-r101-2c7b67e5.pth --output_model detr-r101.pth --force
  python converter.py --source_model detr-r50-e632da11.pth --output_model start.pth --num-classes 3
  python converter.py --source_model output/model_final.pth --output_model mine/model.safetensors --to huggingface
  python converter.py --source_model detr-resnet-50/model.safetensors --output_model detr.pth --to original --coco-ids
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="converter.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source_model", "--source-model", required=True, help="file or URL to convert")
    parser.add_argument("--output_model", "--output-model", required=True, help="file to write")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        default="d2",
        help="whose names to write: ours (default), the original's, or those of transformers, as .bin or .safetensors "
        "with a config.json beside it",
    )
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="foreground classes of the model to load. Without it the head is kept, except that COCO's 92 rows "
        "(category ids) become 81 (80 contiguous classes, no-object) with --to d2. 91 keeps the 92 rows. A head that "
        "does not fit N is left out, and starts anew when the file is loaded for training",
    )
    parser.add_argument(
        "--coco-ids",
        action="store_true",
        help="with --to original or huggingface: write a head over COCO's 80 classes as the published models have it, "
        "92 rows by category id; rows that are no category get the weight 0 and the bias -10000",
    )
    parser.add_argument(
        "--nheads", type=int, metavar="N", help="attention heads, if not 8 and the source does not tell"
    )
    parser.add_argument("--dc5", action="store_true", help="the source is a DC5 model, and does not tell")
    parser.add_argument("--force", action="store_true", help="overwrite the output file")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a source that holds more than weights and plain values; this runs code that the file holds, so "
        "only use it for files whose origin you know",
    )
    args = parser.parse_args(argv)
    if args.num_classes is not None and args.num_classes < 1:
        parser.error("--num-classes counts the foreground classes, without no-object: give 1 or more")
    if args.nheads is not None and args.nheads < 1:
        parser.error("--nheads counts the heads of every attention: give 1 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    settings = {"MODEL.DETR.NHEADS": args.nheads} if args.nheads else {}
    if args.dc5:
        settings["MODEL.RESNETS.RES5_DILATION"] = 2
    try:
        summary = convert_checkpoint(
            args.source_model,
            args.output_model,
            to=args.to,
            num_classes=args.num_classes,
            coco_ids=args.coco_ids,
            settings=settings,
            force=args.force,
            trust=args.trust,
        )
    except UserError as e:
        print(f"converter.py: {e}", file=sys.stderr)
        return 1
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
