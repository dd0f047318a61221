"""Tests of the layers of the package: imports point downwards, and what no module may contain."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "detr_d2"
# From the top down.
LAYERS = (
    "cli",
    "engine",
    "export",
    "evaluation",
    "visualization",
    "inference",
    "modeling",
    "checkpoint",
    "data",
    "criterion",
    "structures",
    "config",
    "utils",
)


def find_faults(code: str, subpackage: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every fault in a module of ``subpackage``, which is "" at the package's top."""
    for node in ast.walk(ast.parse(code)):
        for name in imported_names(node):
            fault = import_fault(name, subpackage)
            if fault:
                yield node.lineno, fault
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "relative import"
            if any(alias.name == "*" for alias in node.names):
                yield node.lineno, f"star import from {node.module}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield node.lineno, "sys.path"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and subpackage != "cli":
            yield node.lineno, "print outside cli"


def imported_names(node: ast.AST) -> list[str]:
    """Return the dotted names that an import statement binds: of ``from a import b`` a.b, which may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def import_fault(name: str, subpackage: str) -> str | None:
    package, *rest = name.split(".")
    if name == "sys.path":
        return "sys.path"
    # The command `detr-d2 benchmark` needs a checkout, which has benchmarks/ beside the package.
    if package in ("tests", "tools") or (package == "benchmarks" and subpackage != "cli"):
        return f"imports {name}, which is not installed with the package"
    if package != PACKAGE or not subpackage:
        return None
    target = rest[0] if rest else ""
    if target not in LAYERS:
        # Commands are above the package's own __init__.py, which imports the others.
        return None if subpackage == "cli" else f"imports {name}: name the subpackage that has it"
    if LAYERS.index(target) < LAYERS.index(subpackage):
        return f"{subpackage} imports {name}, which is not below it"
    return None


def test_modules_follow_the_layers():
    faults = []
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        name = path.relative_to(REPOSITORY)
        subpackage = name.parts[1] if len(name.parts) > 2 else ""
        if not subpackage and path.name != "__init__.py":
            faults.append(f"{name}: move it to a subpackage")
        code = path.read_text(encoding="utf-8")
        faults.extend(f"{name}:{line}: {fault}" for line, fault in find_faults(code, subpackage))
    assert not faults, "\n" + "\n".join(faults)


def test_every_subpackage_has_a_layer():
    found = {path.name for path in (REPOSITORY / PACKAGE).iterdir() if (path / "__init__.py").is_file()}
    assert found <= set(LAYERS)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import detr_d2.engine.trainer", "data imports detr_d2.engine.trainer, which is not below it"),
        ("def f():\n    from detr_d2.checkpoint import reading", "data imports detr_d2.checkpoint.reading"),
        ("from detr_d2 import engine", "data imports detr_d2.engine"),
        ("from detr_d2 import Trainer", "imports detr_d2.Trainer: name the subpackage"),
        ("import detr_d2", "name the subpackage"),
        ("from benchmarks.models import MODELS", "imports benchmarks.models.MODELS, which is not installed"),
        ("from detr_d2.config import *", "star import from detr_d2.config"),
        ("from .mapper import DetrDatasetMapper", "relative import"),
        ("import sys\nsys.path.insert(0, '.')", "sys.path"),
        ("from sys import path", "sys.path"),
        ("if True:\n    print('done')", "print outside cli"),
        ("from detr_d2.data.mapper import a\nfrom detr_d2.criterion import b\nimport torch.utils", None),
    ],
)
def test_faults_are_found(code, fault):
    faults = list(find_faults(code, "data"))
    if fault is None:
        assert not faults
    else:
        ((line, found),) = faults
        assert fault in found
        assert line == len(code.splitlines())
