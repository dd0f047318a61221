"""Tests of tools/setup_env.py with its commands recorded instead of run."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "setup_env.py"


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    """Return the script as a module, in a small repository of its own, on a Python that both kinds work with."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "setup.py").write_text("")
    for name in ("newest", "compiled", "detectron2", "oracle"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("")
    script = shutil.copy(SCRIPT, tmp_path / "tools" / "setup_env.py")
    spec = importlib.util.spec_from_file_location("setup_env_under_test", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VERSION", "3.10")
    # main() has Ctrl-C and the end by a signal mean the same; not for the tests.
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "environment"


@pytest.fixture
def ran(setup_env, folder, monkeypatch) -> list[list[str]]:
    """Return the commands that set-up ran, of which making the environment leaves a link to an interpreter."""
    commands = []

    def run(command, **options):
        commands.append(command)
        assert (folder / setup_env.STAMP).read_text() == setup_env.INCOMPLETE
        if command[1:3] == ["-m", "venv"]:
            (folder / "bin").mkdir()
            (folder / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(setup_env.subprocess, "run", run)
    return commands


def set_up(setup_env, folder: Path, kind: str = "newest") -> None:
    setup_env.main([kind, "--venv", str(folder)])


def test_second_run_does_nothing(setup_env, folder, ran):
    set_up(setup_env, folder)
    assert len(ran) == 6
    set_up(setup_env, folder)
    assert len(ran) == 6


@pytest.mark.parametrize("step", range(6))
def test_interrupted_at_any_step_is_made_again(setup_env, folder, ran, monkeypatch, step):
    record = setup_env.subprocess.run

    def interrupted(command, **options):
        if len(ran) == step:
            raise KeyboardInterrupt
        record(command, **options)

    monkeypatch.setattr(setup_env.subprocess, "run", interrupted)
    with pytest.raises(SystemExit, match="interrupted"):
        set_up(setup_env, folder)
    (folder / "left-over").write_text("")
    ran.clear()
    monkeypatch.setattr(setup_env.subprocess, "run", record)
    set_up(setup_env, folder)
    assert len(ran) == 6
    assert not (folder / "left-over").exists()


def test_other_requirements_or_setup_make_it_again(setup_env, folder, ran, tmp_path):
    set_up(setup_env, folder)
    for number, name in enumerate(("requirements/newest.txt", "setup.py", "tools/setup_env.py"), start=2):
        with open(tmp_path / name, "a") as file:
            file.write("# another\n")
        set_up(setup_env, folder)
        assert len(ran) == 6 * number, name


def test_vanished_interpreter_makes_it_again(setup_env, folder, ran):
    set_up(setup_env, folder)
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to(folder / "gone")
    set_up(setup_env, folder)
    assert len(ran) == 12


def test_other_interpreter_makes_it_again(setup_env, folder, ran, monkeypatch):
    set_up(setup_env, folder)
    monkeypatch.setattr(setup_env.sys, "version", "3.10.99")
    set_up(setup_env, folder)
    assert len(ran) == 12


def test_other_folders_are_left_alone(setup_env, folder, ran):
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="move it away"):
        set_up(setup_env, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert not ran


def test_failing_step_is_named_with_its_command(setup_env, folder, monkeypatch):
    def fail(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(setup_env.subprocess, "run", fail)
    with pytest.raises(SystemExit, match=r"step 'new environment.*' failed(.|\n)*-m venv"):
        set_up(setup_env, folder)
    assert (folder / setup_env.STAMP).read_text() == setup_env.INCOMPLETE


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_unsupported_python_says_which_work(setup_env, folder, ran, monkeypatch, version):
    monkeypatch.setattr(setup_env, "VERSION", version)
    with pytest.raises(SystemExit, match=rf"Python {version}.*3\.10, 3\.11, 3\.12.*PYTHON="):
        set_up(setup_env, folder)
    assert not folder.exists()


def test_python_without_ensurepip_says_what_to_install(setup_env, folder, ran, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        setup_env.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name)
    )
    with pytest.raises(SystemExit, match=r"no module ensurepip.*python3\.10-venv"):
        set_up(setup_env, folder)


def test_only_the_compiled_environment_installs_the_wheel_as_it_is(setup_env, folder, ran):
    for kind, as_it_is in (("newest", False), ("compiled", True)):
        ran.clear()
        set_up(setup_env, folder, kind)
        detectron2 = next(command for command in ran if any("detectron2.txt" in word for word in command))
        assert ("--target" not in detectron2) == as_it_is
        assert "--no-deps" in detectron2


@pytest.fixture
def other_python(setup_env, folder, tmp_path, monkeypatch):
    """Make python3 another version than the compiled environment's, and return the interpreters that run instead."""
    (tmp_path / "path").mkdir()
    monkeypatch.setattr(setup_env, "VERSION", "3.12")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    continued = []

    def execv(path, arguments):
        continued.append(path)
        raise SystemExit

    monkeypatch.setattr(setup_env.os, "execv", execv)
    return continued


def make_python(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_compiled_continues_with_python_3_10_on_path(setup_env, folder, tmp_path, other_python):
    python = make_python(tmp_path / "path" / "python3.10", "echo 3.10")
    with pytest.raises(SystemExit):
        set_up(setup_env, folder, "compiled")
    assert other_python == [python]


def test_compiled_continues_with_pyenv_where_its_shim_is_switched_off(setup_env, folder, tmp_path, other_python):
    make_python(tmp_path / "path" / "python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    python = make_python(tmp_path / "pyenv" / "versions" / "3.10.13" / "bin" / "python3.10", "echo 3.10")
    with pytest.raises(SystemExit):
        set_up(setup_env, folder, "compiled")
    assert other_python == [python]


def test_compiled_without_python_3_10_says_so(setup_env, folder, other_python):
    with pytest.raises(SystemExit, match=r"needs Python 3\.10.*install it"):
        set_up(setup_env, folder, "compiled")
    assert not other_python
    assert not folder.exists()


def test_script_parses_on_old_pythons():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 7))
