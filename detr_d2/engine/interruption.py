"""Signals that end a training run: a checkpoint is saved first, by all processes together."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed

from detr_d2.utils.errors import Stopped

logger = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, x) for x in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, x))
"""Signals by which systems announce the end of a job."""
_STUCK_SECONDS = 40
# Those that blocks of :func:`handled` have set in this process.
_handlers: list[Callable[[int, object], None]] = []


@contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle :data:`SIGNALS` with ``handler`` in this block, if this is the main thread, as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {x: signal.signal(x, handler) for x in SIGNALS}
    _handlers.append(handler)
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
        _handlers.remove(handler)


def _forget_handlers() -> None:
    """Let signals end a process that was forked: its handler would note them, and its parent wait for its end."""
    for number in SIGNALS:
        if signal.getsignal(number) in _handlers:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_handlers)


def forward_to(pids: Sequence[int]) -> Callable[[int, object], None]:
    """Return a signal handler that passes the signal on to other processes, those that have not ended."""

    def forward(number: int, frame: object) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    return forward


class StopOnSignal(HookBase):
    """Hook that saves a checkpoint and raises :class:`Stopped`, in all processes, if any received a signal.

    What the processes have received is exchanged while the next step is computed, so that no one waits for it: they
    stop one step later. The last step is not interrupted, since the final checkpoint follows.
    """

    def __init__(self) -> None:
        self._received = 0
        self._handled = None
        self._exchange: tuple[distributed.Work, torch.Tensor] | None = None
        self._group = None
        self._watch: tuple[threading.Event, int] | None = None

    def before_train(self) -> None:
        self._handled = handled(self._receive)
        self._handled.__enter__()
        if comm.get_world_size() > 1:
            # Processes are stuck if the one that they exchange gradients with has died.
            if threading.current_thread() is threading.main_thread():
                self._watch = _watch_signals()
            # A group on the CPU: a GPU would have to be waited for.
            self._group = distributed.new_group(backend="gloo")

    def after_step(self) -> None:
        number = self._agreed()
        trainer = self.trainer
        if not number or trainer.iter + 1 >= trainer.max_iter:
            return
        if self._watch is not None:
            self._watch[0].set()
        # Saved weights must be known to be finite.
        trainer._trainer.loss_log.write()
        if comm.is_main_process():
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        comm.synchronize()
        name = signal.Signals(number).name
        logger.info(f"Stopped by {name} after iteration {trainer.iter}, which is saved: continue with --resume.")
        raise Stopped(number)

    def after_train(self) -> None:
        if self._handled is not None:
            self._handled.__exit__(None, None, None)
        if self._watch is not None:
            self._watch[0].set()
            signal.set_wakeup_fd(-1)
            os.close(self._watch[1])
        self._handled = self._watch = None

    def _receive(self, number: int, frame: object) -> None:
        self._received = number

    def _agreed(self) -> int:
        """Return the signal that any process had received one step ago; 0: none."""
        if comm.get_world_size() == 1:
            return self._received
        number = 0
        if self._exchange is not None:
            work, received = self._exchange
            work.wait()
            number = int(received)
        received = torch.tensor(self._received)
        self._exchange = (
            distributed.all_reduce(received, distributed.ReduceOp.MAX, self._group, async_op=True),
            received,
        )
        return number


def _watch_signals() -> tuple[threading.Event, int]:
    """Start a thread that ends this process some time after SIGTERM, unless the event is set.

    Python runs no handler of a signal while the main thread waits for another process.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    stopped = threading.Event()

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM and not stopped.wait(_STUCK_SECONDS):
                os._exit(128 + signal.SIGTERM)
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    return stopped, writing
