"""Parser of the commands, and the flags that several of them share."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from detr_d2.utils.errors import UserError

AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)

# Form of a config key: MODEL.WEIGHTS, SEED.
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)*")


class CommandParser(argparse.ArgumentParser):
    """Parser of one command, with hidden old spellings and config keys anywhere among the flags."""

    def __init__(self, command: str, doc: str):
        """Make a parser without flags. ``--help`` shows the first line of ``doc`` before them, the rest after them."""
        description, _, epilog = doc.partition("\n\n")
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"detr-d2 {command}", description=description, epilog=epilog, formatter_class=raw)
        self._accepts_keys = False

    def add_alias(self, flag: str, *old: str) -> None:
        """Accept other spellings of a flag, which ``--help`` does not show."""
        self._option_string_actions.update(dict.fromkeys(old, self._option_string_actions[flag]))

    def add_config(self, required: bool = False, **settings) -> None:
        """Add ``--config-file``, and accept ``KEY VALUE`` pairs of the config anywhere, as ``args.opts``."""
        accepted = "a packaged config (smca_r50_type3), a published model (detr-r50), or the path of a YAML file"
        default = f" (default: {settings['default']})" if "default" in settings else ""
        settings = {"required": required, "default": "", "metavar": "NAME", **settings}
        self.add_argument("--config-file", **settings, help=accepted + default)
        self.add_argument(
            "--trust",
            action="store_true",
            help="accept Python code in the config file and run it; only for files whose origin you know",
        )
        self._accepts_keys = True
        self.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, e.g. MODEL.DEVICE cpu")

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the words of a command line, by default those of this process, which become ``args.words``.

        ``--output DIR`` of a parser of :func:`add_training_flags` becomes the config key OUTPUT_DIR.
        """
        words = list(sys.argv[1:] if words is None else words)
        self.set_defaults(words=words)
        if not self._accepts_keys or not {"-h", "--help"}.isdisjoint(words):
            return self.parse_args(words)
        rest, pairs = take_options(words)
        args = self.parse_intermixed_args(rest)
        args.opts = [*args.opts, *pairs]
        if getattr(args, "output_dir", None):
            args.opts += ["OUTPUT_DIR", args.output_dir]
        return args

    def _get_option_tuples(self, option_string):
        # An abbreviation of several spellings of one flag is not ambiguous.
        return list({id(match[0]): match for match in super()._get_option_tuples(option_string)}.values())


def take_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the words of a command line into flags with their values, and ``KEY VALUE`` pairs of the config.

    For flags that take any number of values, which would take the pairs for some of them.
    """
    if not any(map(_KEY.fullmatch, words)):
        return list(words), []
    from detectron2.config import get_cfg

    sections = get_cfg()
    rest, pairs = [], []
    remaining = iter(words)
    for word in remaining:
        if word.partition(".")[0] in sections and not os.path.exists(word):
            pairs += [word, *([value] if (value := next(remaining, None)) is not None else [])]
        else:
            rest.append(word)
    return rest, pairs


def at_least(minimum: int, unit: str) -> Callable[[str], int]:
    """Return a ``type`` for integers of at least ``minimum``; ``unit`` names what they count, for messages."""

    def integer(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number}: give the number of {unit}, {minimum} or more")
        return number

    return integer


def class_names(text: str) -> list[str]:
    """Return the names in a list separated by commas; a ``type`` of arguments."""
    return [name.strip() for name in text.split(",")]


def check_score(score: float | None) -> None:
    """Raise an error if ``--score-thresh`` is given and not in [0, 1]."""
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score-thresh is {score}: give a number from 0 to 1.")


def add_training_flags(parser: CommandParser, **config_settings) -> None:
    """Add ``--config-file``, the other flags of Detectron2's ``default_argument_parser``, and ``--output``."""
    parser.add_config(**config_settings)
    parser.add_argument("--output", dest="output_dir", metavar="DIR", help="output folder of the run: OUTPUT_DIR")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in that folder")
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs, or on a CPU processes, per machine (default: 1)"
    )
    group.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    group.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="number of this machine, counted from 0 (default: 0)"
    )
    group.add_argument(
        "--dist-url",
        metavar="URL",
        help="address at which the processes meet (default: a port of this machine; auto: any free one)",
    )
    group.add_argument(
        "--start-timeout",
        type=at_least(1, "seconds"),
        default=300,
        metavar="SECONDS",
        help="time in which all processes must have started (default: 300)",
    )
    parser.set_defaults(eval_only=False)


def add_annotated_flags(parser: CommandParser) -> None:
    """Add the flags of a model and of the annotated images that it predicts on."""
    parser.add_config()
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, or an exported model, which needs no config: MODEL.WEIGHTS"
    )
    parser.add_argument("--annotations", required=True, metavar="FILE", help="annotations in COCO's format")
    parser.add_argument("--images", required=True, metavar="DIR", help="the folder of their images")
    parser.add_argument(
        "--batch-size", type=at_least(1, "images"), default=1, metavar="N", help="images at a time (default: 1)"
    )


def add_data_arguments(parser: AnyParser) -> AnyParser:
    """Add the flags that :func:`~detr_d2.engine.use_own_data` reads."""
    group = parser.add_argument_group(
        "own data",
        "annotations in COCO's or another format, instead of DATASETS.TRAIN and DATASETS.TEST; the number of classes "
        "is that of the annotations",
    )
    add_conversion_arguments(group)
    for split, use in (("train", "train on"), ("val", "evaluate on; without, nothing is evaluated")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations to {use}")
        group.add_argument(f"--{split}-images", metavar="DIR", help="the folder of their images")
        panoptic = f"the folder of the PNGs, if --{split}-json is in COCO's panoptic format (docs/PANOPTIC.md)"
        group.add_argument(f"--{split}-panoptic", metavar="DIR", help=panoptic)
    return parser


def add_conversion_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags that :func:`~detr_d2.engine.own_data.convert_data` reads, except those for the image folders."""
    group.add_argument(
        "--train-data",
        metavar="DIR_OR_FILE",
        help="annotations to train on in any format that `detr-d2 import` reads; its split for validation, if it has "
        "one, is evaluated on",
    )
    group.add_argument("--val-data", metavar="DIR_OR_FILE", help="annotations in any format to evaluate on")
    group.add_argument("--test-data", dest="val_data", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    group.add_argument(
        "--classes", type=class_names, metavar="A,B,C", help="classes of --train-data and --val-data, in their order"
    )
