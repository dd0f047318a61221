"""Commands, and running them: errors become exit codes here, and nowhere else."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detr_d2.cli.arguments import CommandParser
from detr_d2.utils.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command, which is called like a function: ``main`` of its module."""

    name: str
    doc: str
    """Docstring of its module, for ``--help``: see :class:`~detr_d2.cli.arguments.CommandParser`."""
    add_flags: Callable[[CommandParser], None]
    run: Callable[[argparse.Namespace], int | None]

    def make_parser(self) -> CommandParser:
        """Return the parser with all flags."""
        parser = CommandParser(self.name, self.doc)
        self.add_flags(parser)
        return parser

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run it with ``arguments``, by default those of this process, and return :func:`exit_code`.

        Wrong usage ends the process with 2, ``--help`` with 0.
        """
        args = self.make_parser().parse(arguments)
        return exit_code(lambda: self.run(args))


def exit_code(work: Callable[[], int | None]) -> int:
    """Return what ``work`` returns (None is 0), 1 after a :class:`UserError` or a closed pipe, or 130 after Ctrl-C.

    A mistake of the user is one message on stderr; other errors are raised.
    """
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Of `detr-d2 … | head`; what is still in the buffer can't be written either when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Return the exit code of ``main(args)`` in the processes that ``args`` asks for: also for scripts of one's own."""
    from detr_d2.engine import launch_processes

    return exit_code(lambda: launch_processes(main, args))


def start_process() -> None:
    """Log to the terminal and keep freed memory, in a command that does not train."""
    from detectron2.utils.logger import setup_logger

    from detr_d2.utils.allocator import keep_freed_memory

    setup_logger(name="detr_d2", abbrev_name="detr_d2")
    keep_freed_memory()
