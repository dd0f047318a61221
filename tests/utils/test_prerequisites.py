"""Tests of the import check for Detectron2 with packages hidden."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CHECK = REPOSITORY / "detr_d2" / "utils" / "prerequisites.py"

# Hides the package named first from every finder, then runs the rest.
HIDE = """
import sys

class Without:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

sys.meta_path[:] = [Without()]
"""

IMPORT = """
try:
    import detr_d2
except ImportError as error:
    print(type(error).__name__, error.name, error, sep="\\n")
"""

RUN_CHECK = """
import runpy
runpy.run_path(sys.argv[2])["check_detectron2"]()
print(*sorted({"detectron2", "pkg_resources", "torch"} & set(sys.modules)))
"""


def run_without(package: str, script: str) -> str:
    """Run a script in a new process where a package is hidden; return its output."""
    command = [sys.executable, "-c", HIDE + script, package, str(CHECK)]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def message() -> str:
    """Return the output of ``import detr_d2`` without Detectron2: the exception's type, the module, the message."""
    return run_without("detectron2", IMPORT)


def commands(message: str) -> list[list[str]]:
    """Return the arguments of the pip commands that a message shows, split as by a shell."""
    shown = [shlex.split(line) for line in message.splitlines() if line.startswith("  ")]
    for command in shown:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
    return [command[4:] for command in shown]


def test_missing_detectron2_is_an_import_error_that_names_it(message):
    assert message.splitlines()[:2] == ["ImportError", "detectron2"]


def test_missing_detectron2_shows_how_to_install_its_sources(message):
    installed = ["--no-build-isolation", "git+https://github.com/facebookresearch/detectron2.git"]
    assert installed in commands(message)


def test_missing_detectron2_shows_the_release_that_the_tests_run_with(message):
    lines = (REPOSITORY / "requirements" / "detectron2.txt").read_text().splitlines()
    (release,) = (line for line in lines if not line.startswith("#"))
    last = commands(message)[-1]
    assert last[-1] == release
    assert last[last.index("--target") + 1] == sysconfig.get_path("purelib")
    assert {"--no-deps", "--only-binary=:all:"} < set(last)


def test_missing_detectron2_lists_all_its_declared_requirements(message):
    required = importlib.metadata.requires("sal-detectron2")
    names = {re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line}
    # torch and torchvision bring these two; the third is part of Python today.
    names -= {"numpy", "Pillow", "dataclasses"}
    listed = {re.match(r"[\w-]+", need)[0] for need in commands(message)[-2]}
    assert names | {"fvcore", "iopath", "setuptools"} <= listed


def test_missing_pkg_resources_shows_the_setuptools_that_has_it():
    message = run_without("pkg_resources", IMPORT)
    assert message.splitlines()[:2] == ["ImportError", "pkg_resources"]
    assert commands(message) == [["setuptools<81"]]


def test_check_passes_and_imports_nothing_where_detectron2_is_installed():
    assert run_without("nothing", RUN_CHECK) == "\n"
