"""An object in a process of its own: with libraries, threads and memory that nothing else uses."""

import multiprocessing
import pickle
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any

import torch

from detr_d2.utils.errors import UserError

# Seconds between looks whether the process still lives, and for it to end by itself.
_LOOK, _PATIENCE = 1.0, 10.0


class OwnProcess:
    """A copy of an object in a fresh process with as many threads of PyTorch, which does what it is asked, or waits.

    A context manager: the process ends with it. It also ends, at the latest when it has done what it does, if this
    process is killed.
    """

    def __init__(self, served: Any, name: str):
        """
        Args:
            served: can be pickled, its class can be imported.
            name: for messages.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon, which could have no processes of its own, as loaders have.
        self._process = context.Process(target=_serve, args=(theirs, torch.get_num_threads(), served), name=name)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns.

        Raises:
            Exception: what the method raises, with the other process's traceback as its cause.
            UserError: the process is gone.
        """
        try:
            self._connection.send_bytes(pickle.dumps((method, arguments)))
            # Not only recv: children of a process that is gone keep its connection open.
            while not self._connection.poll(_LOOK):
                if not self._process.is_alive():
                    raise EOFError
            result, error = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as e:
            self._process.join(_PATIENCE)
            code = self._process.exitcode
            reason = ", killed, perhaps because memory ran out" if code == -signal.SIGKILL else ""
            raise UserError(f"The process of {self.name} ended with exit code {code}{reason}.") from e
        if error is not None:
            raise error
        return result

    def __enter__(self) -> "OwnProcess":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: Any) -> None:
        # It ends when it finds nobody at the other end. After an error it may be in the midst of long work.
        self._connection.close()
        if error is not None:
            self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, threads: int, served: Any) -> None:
    # Ctrl-C reaches all processes of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pickle.loads(connection.recv_bytes())
            connection.send_bytes(_answer(getattr(served, method), arguments))


def _answer(method: Any, arguments: tuple) -> bytes:
    """Plain pickle, which copies tensors: multiprocessing's own would send names of shared memory, a file for each."""
    try:
        return pickle.dumps((method(*arguments), None))
    except Exception as e:
        return pickle.dumps((None, ExceptionWithTraceback(_portable(e), e.__traceback__)))


def _portable(error: Exception) -> Exception:
    try:
        # Exceptions whose constructor takes other arguments can be written, but not read.
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
