"""Convert a checkpoint to the native format, to the original's or to that of transformers.

Reads files of a DETR (R18 to R152, box models; of segmentation and panoptic models the box part) or SMCA: native ones,
those of the original code and of SMCA's authors, of the transformers library, and of the original's Detectron2 wrapper.
The result is checked, name by name and shape by shape, against the model that it is for before anything is written.
MODEL.WEIGHTS accepts all of these files too; a converted one is smaller, holds the class names, and can be read by
other tools. The tensors do not show whether a model is a DC5 model, nor how many heads its attention has: use --dc5 and
--nheads.

Examples:
  detr-d2 convert --input https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth --output weights/detr-r50.pth
  detr-d2 convert --input detr-r101-2c7b67e5.pth --output detr-r101.pth --force
  detr-d2 convert --input detr-r50-e632da11.pth --output start.pth --num-classes 3
  detr-d2 convert --input output/model_final.pth --output mine/model.safetensors --to huggingface
  detr-d2 convert --input detr-resnet-50/model.safetensors --output detr.pth --to original --coco-ids
"""

import argparse

from detr_d2.cli.arguments import CommandParser, at_least
from detr_d2.cli.command import Command

TARGETS = ("d2", "original", "huggingface")
"""Values of --to, as in :data:`detr_d2.checkpoint.conversion.TARGETS`, which takes long to import."""


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("--input", required=True, metavar="FILE", help="file or URL to convert")
    parser.add_alias("--input", "--source_model", "--source-model")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    parser.add_alias("--output", "--output_model", "--output-model")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        default="d2",
        help="format to write: d2 (native, the default), the original's, or that of transformers, as .bin or "
        ".safetensors with a config.json in the same folder",
    )
    parser.add_argument(
        "--num-classes",
        type=at_least(1, "foreground classes, without no-object"),
        metavar="N",
        help="foreground classes, without no-object, of the model to load. By default the head is kept, except that "
        "COCO's 92 rows (category ids) become 81 (80 contiguous classes, no-object) with --to d2. 91 keeps the 92 "
        "rows. A head that does not fit N is left out, and initialized when the file is loaded for training",
    )
    parser.add_argument(
        "--coco-ids",
        action="store_true",
        help="with --to original or huggingface: write a head over COCO's 80 classes as the published models have it, "
        "92 rows by category id; unused rows get the weight 0 and the bias -10000",
    )
    parser.add_argument(
        "--nheads",
        type=at_least(1, "attention heads"),
        metavar="N",
        help="heads of every attention, if not 8 and the source does not say (default: 8)",
    )
    parser.add_argument("--dc5", action="store_true", help="treat the source as a DC5 model, if it does not say so")
    parser.add_argument("--force", action="store_true", help="overwrite the output file")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a source that holds more than weights and plain values; this runs code that the file holds, so "
        "only use it for files whose origin you know",
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was done."""
    from detr_d2.checkpoint.conversion import convert_checkpoint

    settings = {"MODEL.DETR.NHEADS": args.nheads} if args.nheads else {}
    if args.dc5:
        settings["MODEL.RESNETS.RES5_DILATION"] = 2
    options = {name: getattr(args, name) for name in ("to", "num_classes", "coco_ids", "force", "trust")}
    print(convert_checkpoint(args.input, args.output, settings=settings, **options))


main = Command("convert", __doc__, _add_flags, run)
