"""Package metadata. Detectron2, and with it torch, is a prerequisite that is never installed from here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read(name: str) -> str:
    """Return the text of a file; "" where a source distribution lacks it."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def version() -> str:
    """Return the package's version, read without importing it: the import needs Detectron2."""
    return re.search(r'^__version__ = "(.+)"$', read("detr_d2/__init__.py"), re.MULTILINE).group(1)


setup(
    name="detr_d2",
    version=version(),
    description="DETR for Detectron2: meta-architecture, dataset mapper, configs and commands",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # Anything that depends on torch stays out, so that the torch Detectron2 was built with is never replaced.
    install_requires=["numpy", "scipy>=1.7"],
    # timm requires any torch, which Detectron2 has brought.
    extras_require={
        "timm": ["timm>=1.0.15"],
        "slurm": ["submitit>=1.5"],
        # Experiment trackers, docs/TRACKING.md.
        "wandb": ["wandb>=0.18"],
        "mlflow": ["mlflow>=2.20"],
        "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
        # To write and to run exported models, docs/EXPORT.md.
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.5"],
        "openvino": ["openvino>=2025.0"],
        "openvino-int8": ["openvino>=2025.0", "nncf>=2.14"],
        # TIFF files of several bands, docs/OWN_DATA.md; the second decompresses most of them.
        "multispectral": ["tifffile>=2023.1", "imagecodecs>=2023.1"],
    },
    packages=[*find_packages(include=["detr_d2", "detr_d2.*"]), "detr_d2.configs"],
    package_dir={"detr_d2.configs": "configs"},
    entry_points={"console_scripts": ["detr-d2 = detr_d2.cli.main:main"]},
    package_data={
        "detr_d2.configs": ["*.yaml", "**/*.yaml", "lazy/**/*.py"],
        "detr_d2.cli": ["*.html"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
