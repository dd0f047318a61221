"""Check for Detectron2, which pip can't install as a dependency, with installation commands in the error."""

import importlib.util
import os
import shlex
import sys
import sysconfig

_NEEDS = """
    fvcore iopath omegaconf<2.4 hydra-core matplotlib opencv-python-headless pycocotools termcolor yacs tabulate
    cloudpickle tqdm tensorboard black packaging setuptools<81
"""


def check_detectron2() -> None:
    """Raise an ImportError with the commands that install what Detectron2 lacks, if it can't be imported."""
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(_missing_detectron2(), name="detectron2")
    if importlib.util.find_spec("pkg_resources") is None:
        raise ImportError(
            "Detectron2 imports pkg_resources, which setuptools dropped in version 81. Install an "
            f"earlier one:\n  {_pip('setuptools<81')}",
            name="pkg_resources",
        )


def _missing_detectron2() -> str:
    source = "git+https://github.com/facebookresearch/detectron2.git"
    site_packages = sysconfig.get_path("purelib")
    wheel = ("--no-deps", "--only-binary=:all:", "--python-version", "3.10", "--target", site_packages)
    return (
        "detr_d2 needs Detectron2, which is not installed for this Python. Install torch and torchvision if "
        "they are missing, then\n"
        f"  {_pip('setuptools<81', 'wheel')}\n"
        f"  {_pip('--no-build-isolation', source)}\n"
        "Where that repository cannot be reached, the package registry has the same sources; their compiled "
        "ops (rotated boxes, deformable convolution) then work with Python 3.10 and torch 2.3.1 only:\n"
        f"  {_pip(*_NEEDS.split())}\n"
        f"  {_pip(*wheel, 'sal-detectron2==0.7.2')}"
    )


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def is_light_command() -> bool:
    """Check whether this process only shows help, versions or completions of ``detr-d2``, which need no torch.

    Also where Detectron2 is missing: the command itself reports that.
    """
    # With -m, Python puts "-m" in the place of the module's name while it imports the package.
    name = sys.orig_argv[-len(sys.argv)] if sys.argv[0] == "-m" else os.path.basename(sys.argv[0])
    if name not in ("detr-d2", "detr-d2.exe", "detr_d2.cli"):
        return False
    is_missing = any(importlib.util.find_spec(package) is None for package in ("detectron2", "pkg_resources"))
    is_about_commands = sys.argv[1:2] in ([], ["help"], ["--version"], ["-V"], ["completion"])
    return is_missing or is_about_commands or not {"-h", "--help"}.isdisjoint(sys.argv)
