"""Command ``detr-d2 benchmark``: run the benchmarks of a checkout of the repository."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks`` and return its exit code."""
    checkout = find_checkout()
    if checkout is None:
        sys.stderr.write(
            "error: the benchmarks are not installed with the package: git clone the repository, and run "
            "`detr-d2 benchmark` in its folder.\n"
        )
        return 1
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    # In Python 3.11 and later, PYTHONSAFEPATH prevents importing another folder "benchmarks" in the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # Ctrl-C reaches the benchmark, too: let it end its processes.
                continue


def find_checkout() -> Path | None:
    """Return the checkout around the current folder, or the one that holds this package, or None."""
    here = Path.cwd()
    for folder in (here, *here.parents, _PACKAGE.parent):
        if (folder / "benchmarks" / "command.py").is_file() and (folder / "detr_d2" / "__init__.py").is_file():
            return folder
    return None
