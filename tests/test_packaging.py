"""Tests of what ``pip install .`` adds to a user's project."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


def run(*command: str, **options) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Return a copy of the repository, since a build leaves folders behind, with one more config in a folder."""
    folder = tmp_path_factory.mktemp("sources") / "repository"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "output")
    shutil.copytree(REPOSITORY, folder, ignore=unwanted)
    (folder / "configs" / "variants").mkdir()
    (folder / "configs" / "variants" / "one.yaml").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    """Return the wheel, built with the setuptools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources))
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    """Return the files in the wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_module(names):
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "detr_d2").rglob("*.py")}
    assert "detr_d2/config/defaults.py" in modules
    assert modules <= names


def test_wheel_holds_every_config(sources, names):
    configs = {f"detr_d2/{path.relative_to(sources)}" for path in (sources / "configs").rglob("*.yaml")}
    assert {"detr_d2/configs/detr_256_6_6_torchvision.yaml", "detr_d2/configs/variants/one.yaml"} <= configs
    assert configs <= names


def test_wheel_claims_no_other_name(names):
    """Top-level packages such as ``tools`` or ``tests`` would collide with those of the user's project."""
    assert {name.split("/")[0] for name in names} == {"detr_d2"}


def test_source_distribution_builds_the_same_wheel(sources, names, tmp_path):
    build = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    archive = run(sys.executable, "-c", build, str(tmp_path), cwd=sources).splitlines()[-1]
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tmp_path / archive))
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as unpacked:
        assert names == {name for name in unpacked.namelist() if ".dist-info/" not in name}


def test_installing_brings_nothing_that_depends_on_torch(wheel):
    """A second torch would break the Detectron2 that was built with the first."""
    (path,) = importlib.metadata.Distribution.discover(name="detr_d2", path=[str(wheel)])
    always = [requirement for requirement in path.requires if "extra ==" not in requirement]
    assert {requirement.split(">")[0] for requirement in always} == {"numpy", "scipy"}
    report = json.loads(run(*PIP, "install", "--dry-run", "--no-index", "--report", "-", str(wheel)))
    assert {item["metadata"]["name"] for item in report["install"]} <= {"detr_d2"}


def test_installed_package_works_away_from_the_repository(wheel, tmp_path):
    """It is imported, registers the model and finds its configs."""
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    script = """
import importlib.resources, sys
import detr_d2
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detr_d2.config import find_config, load_config
cfg = get_cfg()
detr_d2.add_detr_config(cfg)
config = importlib.resources.files("detr_d2.configs") / "detr_256_6_6_torchvision.yaml"
cfg.merge_from_file(str(config))
print(detr_d2.__file__, config, cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY, sep="\\n")
print(find_config("detr_256_6_6_torchvision"), load_config("smca_shapes_cpu", []).MODEL.DETR.TRANSFORMER, sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    printed = run(sys.executable, "-W", "ignore", "-c", script, cwd=tmp_path, env=environment).splitlines()
    site = tmp_path / "site" / "detr_d2"
    config = site / "configs" / "detr_256_6_6_torchvision.yaml"
    assert printed == [str(site / "__init__.py"), str(config), "True", str(config), "SmcaTransformer"]


def test_version_is_the_modules(wheel):
    import detr_d2

    assert wheel.name.split("-")[1] == detr_d2.__version__
