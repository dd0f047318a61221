"""Worker processes: an object in a process with libraries, threads and memory that nothing else uses."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback
from pathlib import Path
from typing import Any

import torch

from detr_d2 import UserError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout of these benchmarks."""
# Seconds between two checks that the process is alive, and seconds that it has to end by itself.
_POLL_INTERVAL, _SHUTDOWN_TIMEOUT = 1.0, 10.0


class WorkerProcess:
    """Process with a copy of an object, which calls the object's methods on request and waits otherwise.

    It is a context manager: the process ends with it. If this process is killed, the other one ends, too, at the
    latest after the current call. Both use the same number of PyTorch threads.
    """

    def __init__(self, target: Any, name: str, checkout: Path = ROOT):
        """Start the process.

        Args:
            target: object that can be pickled; the other process imports its class.
            name: name of the process in messages.
            checkout: folder with a checkout of this repository. The process imports ``detr_d2`` from there, and
                ``benchmarks`` if the checkout has them.
        """
        self.name = name
        self._connection, other_end = Pipe()
        arguments = [other_end.fileno(), torch.get_num_threads(), os.getcwd()]
        paths = [str(checkout), str(ROOT), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes", *map(str, arguments)],
            # The first folder in which Python looks for modules.
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[other_end.fileno()],
        )
        other_end.close()
        # If the process has ended already, the first call reports it.
        with suppress(OSError):
            self._connection.send_bytes(pickle.dumps(target))

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what the object's method returns.

        Raises:
            UserError: the method raises one, or the process has ended.
            Exception: the method raises it; its cause holds the traceback of the other process.
        """
        try:
            self._connection.send_bytes(pickle.dumps((method, arguments)))
            # Not only recv: children of a process that has ended keep its connection open.
            while not self._connection.poll(_POLL_INTERVAL):
                if self._process.poll() is not None:
                    raise EOFError
            result, message, error = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as e:
            code = self._wait()
            reason = ", killed, perhaps because memory ran out" if code == -signal.SIGKILL else ""
            raise UserError(f"The process of {self.name} ended with exit code {code}{reason}.") from e
        if message is not None:
            raise UserError(message)
        if error is not None:
            raise error
        return result

    def _wait(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SHUTDOWN_TIMEOUT)
        return self._process.returncode

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: Any) -> None:
        # The process ends when the connection does. After an error it may be in the middle of long work.
        self._connection.close()
        if error is not None:
            self._process.terminate()
        if self._wait() is None:
            self._process.kill()
            self._process.wait()


def serve(connection: Connection) -> None:
    """Receive an object, then call its methods until the other end closes the connection."""
    with suppress(EOFError, OSError):
        target = pickle.loads(connection.recv_bytes())
        while True:
            method, arguments = pickle.loads(connection.recv_bytes())
            connection.send_bytes(_reply(getattr(target, method), arguments))


def _reply(method: Any, arguments: tuple) -> bytes:
    """Return the pickled result, message of a UserError, and other exception.

    Plain pickle copies tensors; multiprocessing's own would send names of shared memory, one file per tensor.
    """
    try:
        return pickle.dumps((method(*arguments), None, None))
    except UserError as e:
        # Sent as text, since another revision may have its class elsewhere.
        return pickle.dumps((None, str(e), None))
    except Exception as e:
        return pickle.dumps((None, None, ExceptionWithTraceback(_portable(e), e.__traceback__)))


def _portable(error: Exception) -> Exception:
    try:
        # Exceptions whose constructor has other arguments can be pickled, but not unpickled.
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(sys.argv[3])
    torch.set_num_threads(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
