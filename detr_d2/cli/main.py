"""The command ``detr-d2``: help, versions, and the choice of a command."""

import importlib
import importlib.metadata
import importlib.util
import keyword
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from detr_d2 import __version__
from detr_d2.cli.command import exit_code
from detr_d2.utils.errors import did_you_mean
from detr_d2.utils.prerequisites import check_detectron2

GROUPS = {
    "Training": {
        "train": "train a model that a config describes",
        "demo": "train on rendered shapes in minutes, and write a report",
        "overfit": "overfit a few images: a sanity check that data, config and model work together",
        "plot": "plot the training curves of runs",
        "launch": "submit a training to a Slurm cluster",
    },
    "Trained models": {
        "predict": "find objects in images and videos",
        "attention": "visualize where a model attends in an image",
        "export": "export a model to ONNX, OpenVINO or TorchScript, and verify exported files",
        "convert": "convert a checkpoint to the native format, or to that of other code",
    },
    "Measuring": {
        "eval": "evaluate a model on a dataset",
        "calibrate": "set score thresholds that guarantee a recall or a rate of false alarms",
        "evaluate-results": "evaluate a file of detections, without a model",
        "analyze": "count parameters, FLOPs and activations of a model",
        "check-gpu": "check that all works on this machine's GPU, and write a report",
        "benchmark": "measure convergence, and speed compared with the original code and transformers",
    },
    "Data": {
        "check": "check a dataset before training",
        "doctor": "find likely label errors of a dataset with a trained model",
        "import": "convert annotations of other formats (Pascal VOC, YOLO, CVAT, …) to COCO's",
        "import-via": "convert annotations of the VGG Image Annotator, with strict checks of its shapes",
    },
    "This command": {"completion": "print a script for completion in bash, zsh or fish"},
}
COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}
"""Description of every command, by its name."""


def find_command(name: str) -> Callable[[Sequence[str] | None], int]:
    """Return ``main`` of the module of a command."""
    module = name.replace("-", "_")
    # A keyword of Python is no name of a module that can be imported.
    return importlib.import_module(f"detr_d2.cli.{module}{'_' * keyword.iskeyword(module)}").main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code; 2 if there is no such command."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        return exit_code(lambda: print(format_help()))
    if words[0] in ("-V", "--version"):
        return exit_code(lambda: print(format_versions()))
    if words[0] == "compare":
        # The former name of the command.
        words[:1] = ["benchmark", "convergence"]
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS, "detr-d2 --help lists the commands.")
        print(f"error: there is no command {words[0]}. {hint}", file=sys.stderr)
        return 2
    try:
        if "--help" not in words and "-h" not in words and words[0] != "completion":
            check_detectron2()
        return find_command(words[0])(words[1:])
    except ImportError as e:
        if e.name not in ("detectron2", "pkg_resources"):
            raise
        print(f"error: {e}", file=sys.stderr)
        return 1


def format_help() -> str:
    """Return the list of commands."""
    lines = ["usage: detr-d2 COMMAND …", "", "DETR for Detectron2."]
    width = max(map(len, COMMANDS))
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {text}" for name, text in commands.items())]
    lines += ["", "detr-d2 COMMAND --help explains a command; detr-d2 --version prints versions."]
    return "\n".join(lines)


def format_versions() -> str:
    """Return the versions of this package and of what it depends on, without importing torch."""
    return (
        f"detr_d2 {__version__}\ntorch {_version('torch')}\n"
        f"detectron2 {_version('detectron2')}, {_compiled_ops()}\nPython {platform.python_version()}"
    )


def _version(package: str) -> str:
    """Return the version of an importable package, whatever its distribution is called (``sal-detectron2``)."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    distributions = importlib.metadata.packages_distributions().get(package)
    if distributions:
        return importlib.metadata.version(distributions[0])
    return importlib.import_module(package).__version__


def _compiled_ops() -> str:
    """Return whether Detectron2's compiled ops (rotated boxes, deformable convolution) load here."""
    spec = importlib.util.find_spec("detectron2")
    folders = [] if spec is None else spec.submodule_search_locations or []
    if not any((Path(folder) / f"_C{suffix}").is_file() for folder in folders for suffix in EXTENSION_SUFFIXES):
        return "without compiled ops for this Python"
    # They are linked to one version of torch. A process of its own tries it: this one does not import torch.
    command = [sys.executable, "-c", "import torch, detectron2._C"]
    loads = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return "with compiled ops" if loads.returncode == 0 else "with compiled ops that do not load with this torch"
