"""Installation with ``pip install .`` into another project."""

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
    """Copy the repository, as building leaves folders behind, and add a config in a folder."""
    folder = tmp_path_factory.mktemp("sources") / "repository"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "output", "node_modules")
    shutil.copytree(REPOSITORY, folder, ignore=unwanted)
    (folder / "configs" / "variants").mkdir()
    (folder / "configs" / "variants" / "one.yaml").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    """Build the package with the setuptools of this environment."""
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
    files = [*(sources / "configs").rglob("*.yaml"), *(sources / "configs" / "lazy").rglob("*.py")]
    configs = {f"detr_d2/{path.relative_to(sources)}" for path in files}
    assert {"detr_d2/configs/detr_256_6_6_torchvision.yaml", "detr_d2/configs/variants/one.yaml"} <= configs
    assert "detr_d2/configs/lazy/common/detr.py" in configs
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


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Install the package into a folder, and return it."""
    folder = tmp_path_factory.mktemp("site")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


@pytest.fixture
def environment(site, tmp_path) -> dict[str, str]:
    """Return the variables of processes that find the package in ``site``."""
    variables = {"PYTHONPATH": str(site), "DETR_D2_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **variables}


@pytest.mark.slow
def test_installed_package_works_away_from_the_repository(site, environment, tmp_path):
    """The import, the registration and the configs."""
    script = """
import importlib.resources, sys
import detr_d2
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
cfg = get_cfg()
detr_d2.add_detr_config(cfg)
config = importlib.resources.files("detr_d2.configs") / "detr_256_6_6_torchvision.yaml"
cfg.merge_from_file(str(config))
from detr_d2.config import find_config, load_config
print(detr_d2.__file__, config, cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY, sep="\\n")
print(find_config("detr_256_6_6_torchvision"), load_config("smca_shapes_cpu", []).MODEL.DETR.TRANSFORMER, sep="\\n")
"""
    printed = run(sys.executable, "-W", "ignore", "-c", script, cwd=tmp_path, env=environment).splitlines()
    config = site / "detr_d2" / "configs" / "detr_256_6_6_torchvision.yaml"
    assert printed == [str(site / "detr_d2" / "__init__.py"), str(config), "True", str(config), "SmcaTransformer"]


def test_installed_command_answers(site, environment, tmp_path):
    import detr_d2

    printed = run(str(site / "bin" / "detr-d2"), "--version", cwd=tmp_path, env=environment)
    assert printed.splitlines()[0] == f"detr_d2 {detr_d2.__version__}"


@pytest.mark.slow
def test_installed_commands_work_from_an_empty_folder(site, environment, tmp_path):
    """Training by the name of a config, prediction, conversion, and a check of the dataset."""
    folder = tmp_path / "empty"
    folder.mkdir()

    data = ("DATASETS.TRAIN", "('shapes_val',)", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.OUT_FEATURES", "['res5']")
    quick = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0")
    train = ("train", "--config-file", "smca_shapes_cpu", "--output", "run")
    command = str(site / "bin" / "detr-d2")
    run(command, *train, *data, *quick, "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0", cwd=folder, env=environment)
    image = min((tmp_path / "cache").rglob("images/*.*"))
    model = ("--config-file", "run/config.yaml", "MODEL.WEIGHTS", "run/model_final.pth")
    commands = (
        ("predict", *model, "--input", str(image), "--output", "predicted", "--score-thresh", "0"),
        ("convert", "--input", "run/model_final.pth", "--output", "converted.pth"),
        ("check", "--config-file", "smca_shapes_cpu", *data, "DATASETS.TEST", "()"),
    )
    # In one process: importing the packages takes longer than these commands.
    script = f"from detr_d2.cli.main import main\nfor words in {commands}:\n    assert main(words) == 0"
    printed = run(sys.executable, "-c", script, cwd=folder, env=environment)
    assert "detections with a score of 0 or more in 1 images" in printed
    assert (folder / "predicted" / "predictions.json").is_file()
    assert (folder / "converted.pth").is_file()
    assert "0 errors" in printed


def test_version_is_the_modules(wheel):
    import detr_d2

    assert wheel.name.split("-")[1] == detr_d2.__version__
