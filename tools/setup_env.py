"""Make a virtual environment with everything that the tests need, unless it is ready.

    python3 tools/setup_env.py newest      .venv: current torch, Detectron2's sources
    python3 tools/setup_env.py compiled    .venv-compiled: Python 3.10, torch 2.3.1, Detectron2's compiled ops

The environment gets the interpreter that runs this script; "compiled" looks for a Python 3.10 if this one
has another version. A stamp in the folder, written last, marks a complete environment; an interrupted or outdated
one is made again. Standard library only, in syntax that old Pythons parse as well, so that they can report
which version is needed.
"""

import argparse
import glob
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAMP = "detr_d2-environment"
INCOMPLETE = "incomplete\n"
# They redirect packages, or imports, away from the environment.
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
CHECK = "import torchvision.ops, detectron2.engine, detectron2.utils.visualizer, detr, scipy, pytest, xdist"


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


class Kind(NamedTuple):
    """Environment with its requirements file, its folder, its Python versions, and the imports that must work."""

    name: str
    folder: str
    pythons: tuple
    check: str


NEWEST = Kind("newest", ".venv", ("3.10", "3.11", "3.12"), CHECK)
COMPILED = Kind("compiled", ".venv-compiled", ("3.10",), CHECK + "; from detectron2 import _C")
KINDS = {kind.name: kind for kind in (NEWEST, COMPILED)}
VERSION = "{}.{}".format(*sys.version_info)


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--venv", help="folder of the environment (default: see above, in the repository)")
    options = parser.parse_args(arguments)
    kind = KINDS[options.kind]
    folder = os.path.abspath(options.venv or os.path.join(ROOT, kind.folder))
    # As Ctrl-C, so that a running pip ends too and does not interfere with the next run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if VERSION not in kind.pythons:
            continue_with(suitable_python(kind))
        if not is_ready(kind, folder):
            build(kind, folder)
    except (SetupError, OSError) as error:
        sys.exit(f"setup_env: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsetup_env: interrupted; the next run starts again")


def suitable_python(kind):
    """Return the path of another interpreter for an environment that works with one version only."""
    if len(kind.pythons) > 1:
        raise SetupError(
            f"this is Python {VERSION}, and the environment works with {', '.join(kind.pythons)} "
            "only: choose one of them, e.g. make test PYTHON=python3.11"
        )
    version = kind.pythons[0]
    name = "python" + version
    pyenv = os.path.join(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions")
    candidates = [shutil.which(name), *sorted(glob.glob(os.path.join(pyenv, version + ".*", "bin", name)))]
    for candidate in filter(None, candidates):
        # A command of that name may be a pyenv shim whose version is not active.
        if reported_version(candidate) == version:
            return candidate
    raise SetupError(
        f"the environment '{kind.name}' needs Python {version}, but there is no working {name} on PATH and "
        f"none in {pyenv}: install it, or name it, e.g. make test-compiled PYTHON=/path/to/{name}"
    )


def reported_version(python):
    """Return the version of an interpreter as in "3.10", or None if it does not run."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def continue_with(python):
    """Replace this process by the same script under another interpreter."""
    sys.stdout.flush()
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


def is_ready(kind, folder):
    """Check if the folder holds the complete, current environment."""
    try:
        with open(os.path.join(folder, STAMP)) as file:
            stamp = file.read()
    except OSError:
        return False
    # The interpreter in the environment is a link, which may be broken.
    return stamp == fingerprint(kind) and os.path.exists(environment_python(folder))


def fingerprint(kind):
    """Return a digest of everything that a finished environment depends on."""
    digest = hashlib.sha256()
    # Moving the repository breaks the scripts inside; another interpreter breaks the compiled packages.
    for text in (kind.name, ROOT, sys.version, sys.base_prefix):
        digest.update(text.encode() + b"\0")
    names = [os.path.abspath(__file__), os.path.join(ROOT, "setup.py")]
    for name in names + sorted(glob.glob(os.path.join(ROOT, "requirements", "*.txt"))):
        with open(name, "rb") as file:
            digest.update(file.read() + b"\0")
    return digest.hexdigest() + "\n"


def environment_python(folder):
    """Return the path of the environment's interpreter."""
    return os.path.join(folder, "bin", "python")


def build(kind, folder):
    """Make the environment, with a line of output per step."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"{sys.executable} has no module {module}: install it (Debian, Ubuntu: apt-get install "
                f"python{VERSION}-venv), or choose another interpreter with PYTHON=..."
            )
    empty(folder)
    todo = steps(kind, folder)
    for number, (what, command) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {what}", flush=True)
        run(what, command)
    write_stamp(folder, fingerprint(kind))
    print(f"environment ready: {folder}", flush=True)


def empty(folder):
    """Remove an earlier environment, and mark the folder as incomplete for the next run."""
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    if entries and STAMP not in entries and "pyvenv.cfg" not in entries:
        raise SetupError(f"{folder} holds something else than a virtual environment: move it away first")
    if entries:
        print(f"{folder} is unfinished or out of date: making it again", flush=True)
    os.makedirs(folder, exist_ok=True)
    write_stamp(folder, INCOMPLETE)
    for entry in set(entries) - {STAMP}:
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def write_stamp(folder, text):
    """Write the stamp, complete or not at all."""
    partial = os.path.join(folder, STAMP + ".partial")
    with open(partial, "w") as file:
        file.write(text)
    os.replace(partial, os.path.join(folder, STAMP))


def steps(kind, folder):
    """Return the descriptions and the commands of the steps that make the environment."""
    python = environment_python(folder)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-input"]
    detectron2 = [*pip, "--no-deps", "--only-binary=:all:", "-r", requirements("detectron2")]
    if kind is NEWEST:
        # The wheel is tagged for Python 3.10. Its sources work elsewhere too, without its compiled ops.
        site_packages = os.path.join(folder, "lib", "python" + VERSION, "site-packages")
        detectron2 += ["--python-version", "3.10", "--target", site_packages]
    return [
        # Not sys.executable: that may be the interpreter of the environment that was just removed.
        (f"new environment with Python {VERSION}", [base_python(), "-m", "venv", folder]),
        ("torch and most packages (a minute or more)", [*pip, "-r", requirements(kind.name)]),
        ("Detectron2", detectron2),
        ("the original DETR, to compare with", [*pip, "--no-deps", "-r", requirements("oracle")]),
        ("this package", [*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT]),
        ("check that everything imports", [python, "-W", "ignore", "-c", kind.check]),
    ]


def base_python():
    """Return the interpreter that this one's environment was made with."""
    return getattr(sys, "_base_executable", None) or sys.executable


def requirements(name):
    """Return the path of a requirements file."""
    return os.path.join(ROOT, "requirements", name + ".txt")


def run(what, command):
    """Run the command of a step in a clean environment, and explain a failure."""
    environment = {key: value for key, value in os.environ.items() if key not in FOREIGN_VARIABLES}
    try:
        subprocess.run(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        shown = " ".join(map(shlex.quote, command))
        raise SetupError(f"step '{what}' failed: {error.__class__.__name__}. It ran\n  {shown}") from None


if __name__ == "__main__":
    main()
