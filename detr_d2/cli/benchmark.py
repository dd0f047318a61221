"""Command ``detr-d2 benchmark``: run the benchmarks of a checkout of the repository."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    return run_benchmarks(checkout, sys.argv[1:] if arguments is None else arguments)


def run_benchmarks(checkout: Path, arguments: Sequence[str], **options: Any) -> int:
    """Run the benchmarks of a checkout and return their exit code; ``options`` are those of Popen, but for ``env``.

    A variable that is set in ``os.environ`` is also set for them.
    """
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    # In Python 3.11 and later, PYTHONSAFEPATH prevents importing another folder "benchmarks" in the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    with subprocess.Popen(command, env=environment, **options) as process:
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
