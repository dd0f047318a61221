"""Commands, and the conversion of errors to exit codes, which is done only here."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detr_d2.cli.arguments import CommandParser
from detr_d2.utils.errors import Stopped, UserError


@dataclass(frozen=True)
class Command:
    """A command of ``detr-d2``, called like a function; ``main`` of its module."""

    name: str
    doc: str  # Docstring of its module, for ``--help``: see :class:`~detr_d2.cli.arguments.CommandParser`.
    add_flags: Callable[[CommandParser], None]
    run: Callable[[argparse.Namespace], int | None]

    def make_parser(self) -> CommandParser:
        """Return the parser with all flags."""
        parser = CommandParser(self.name, self.doc)
        self.add_flags(parser)
        return parser

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command with ``arguments``, by default those of this process, and return its :func:`exit_code`.

        Wrong usage ends the process with 2, ``--help`` with 0.
        """
        args = self.make_parser().parse(arguments)
        return exit_code(lambda: self.run(args))


def exit_code(work: Callable[[], int | None]) -> int:
    """Return the result of ``work`` (0 for None), 1 after a :class:`UserError` or a closed pipe, 130 after Ctrl-C.

    A run that a signal stopped after saving a checkpoint returns 128 and the signal's number: 143 for SIGTERM.

    A mistake of the user is printed to stderr as one message; other errors are raised.
    """
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except Stopped as e:
        print(e, file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As in `detr-d2 … | head`. The rest of the buffer can't be written either when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Launch ``main(args)`` in the requested number of processes; can be called from user scripts."""
    from detr_d2.engine import launch_processes

    return exit_code(lambda: launch_processes(main, args))


def start_process() -> None:
    """Set up logging to the terminal, and keep freed memory, in a command that does not train."""
    from detectron2.utils.logger import setup_logger

    from detr_d2.utils.allocator import keep_freed_memory

    setup_logger(name="detr_d2", abbrev_name="detr_d2")
    keep_freed_memory()
