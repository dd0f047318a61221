"""Signals in training, the lock on OUTPUT_DIR, files that killed runs left, and processes that do not meet."""

import multiprocessing
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
from detectron2.engine import HookBase, TrainerBase

from detr_d2.cli import command
from detr_d2.engine import interruption
from detr_d2.engine.environments import Start
from detr_d2.engine.interruption import SIGNALS, StopOnSignal, forward_to, handled
from detr_d2.engine.launching import _LOCKS, join_process_group, lock_output
from detr_d2.utils.errors import Stopped, UserError
from detr_d2.utils.files import atomic_file
from detr_d2.utils.locks import remove_abandoned


class SignalAt(HookBase):
    """Sends a signal to this process in one iteration, as a cluster does."""

    def __init__(self, iteration: int, number: int):
        self.iteration, self.number = iteration, number

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


class Training(TrainerBase):
    """A training of nothing, which records its checkpoints."""

    def __init__(self, *hooks):
        super().__init__()
        self.saved = []
        self.checkpointer = self._trainer = self.loss_log = self
        self.register_hooks([*hooks, StopOnSignal()])

    def run_step(self):
        pass

    def save(self, name, iteration):
        self.saved.append((name, iteration))

    def write(self):
        self.saved.append("losses")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_run_after_a_checkpoint(capsys, number):
    before = signal.getsignal(number)
    training = Training(SignalAt(2, number))
    assert command.exit_code(lambda: training.train(0, 6)) == 128 + number
    assert training.saved == ["losses", ("model_0000002", 2)]
    assert capsys.readouterr().err == f"stopped by {number.name}; the run can be continued with --resume\n"
    assert signal.getsignal(number) == before


def test_the_last_step_is_not_interrupted():
    training = Training(SignalAt(5, signal.SIGTERM))
    training.train(0, 6)
    assert not training.saved


def test_processes_agree_one_step_later(monkeypatch):
    """As if another process had received the signal in the step of the exchange."""
    training = Training()

    class Done:
        def wait(self):
            pass

    def all_reduce(tensor, op, group, async_op):
        assert async_op
        tensor.fill_(signal.SIGTERM if training.iter == 2 else 0)
        return Done()

    monkeypatch.setattr(interruption.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(interruption.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(interruption.distributed, "new_group", lambda backend: None)
    with pytest.raises(Stopped):
        training.train(0, 6)
    assert training.saved == ["losses", ("model_0000003", 3)]
    assert signal.set_wakeup_fd(-1) == -1


def be_stuck(ready) -> None:
    """Wait for ever, as for a process that has died, with a handler that does not end this."""
    interruption._STUCK_SECONDS = 0.2
    signal.signal(signal.SIGTERM, lambda *_: None)
    interruption._watch_signals()
    ready.set()
    time.sleep(600)


def test_a_process_that_is_stuck_ends():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=be_stuck, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(60)
    process.terminate()
    process.join(20)
    exit_code = process.exitcode
    process.kill()
    assert exit_code == 128 + signal.SIGTERM


def test_signals_are_passed_on():
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    with handled(forward_to([process.pid])):
        os.kill(os.getpid(), signal.SIGTERM)
        process.join(60)
        assert process.exitcode == -signal.SIGTERM
        # Those that have ended are left out.
        os.kill(os.getpid(), signal.SIGTERM)


def write_and_wait(folder: Path, ready) -> None:
    lock_output(folder)
    with atomic_file(folder / "model_0000007.pth") as file:
        file.write(b"half")
        ready.set()
        time.sleep(600)


@pytest.fixture
def writing(tmp_path):
    """Return a process that holds the lock of a folder, and has half of a checkpoint written."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=write_and_wait, args=(tmp_path / "run", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()
    if held := _LOCKS.pop((tmp_path / "run").resolve(), None):
        held.close()


def test_a_folder_is_for_one_run(writing, tmp_path):
    """Until the other run ends, in any way; then what it left half-written is removed."""
    folder = tmp_path / "run"
    temporary = "model_0000007.pth.tmp"
    (folder / "model_0000003.pth").touch()
    with pytest.raises(UserError, match=rf"OUTPUT_DIR is .*another run is training \(process {writing.pid} on "):
        lock_output(folder)
    assert (folder / temporary).exists()
    writing.kill()
    writing.join()
    assert lock_output(folder) == [temporary]
    assert sorted(x.name for x in folder.iterdir()) == [".lock", "model_0000003.pth"]
    # The same process may train again.
    assert lock_output(folder) == []


def test_files_that_another_process_writes_stay(writing, tmp_path):
    """Such as those of a conversion into the folder of a run."""
    (tmp_path / "run" / "model_0000001.pth.1.tmp").touch()
    assert remove_abandoned(tmp_path / "run", "model_*.tmp") == ["model_0000001.pth.1.tmp"]
    assert (tmp_path / "run" / "model_0000007.pth.tmp").exists()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_never_come(rank):
    start = Start("flags", rank, 2, url=f"tcp://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"Process {rank} of 2 did not find the others at tcp.* within 1 s"):
        join_process_group(start, timedelta(seconds=1))
    assert time.monotonic() - began < 60


def test_a_port_in_use():
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        start = Start("flags", 0, 2, url=f"tcp://127.0.0.1:{s.getsockname()[1]}")
        with pytest.raises(UserError, match=r"The address tcp.* is in use.*--dist-url auto"):
            join_process_group(start, timedelta(seconds=5))


def sleep(started) -> None:
    started.set()
    time.sleep(30)


def test_processes_that_are_forked_meanwhile_can_be_ended():
    """As those of a pool that an evaluator starts during training."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with handled(lambda *_: None):
        process = context.Process(target=sleep, args=(started,))
        process.start()
        started.wait()
        process.terminate()
        process.join(10)
    assert process.exitcode == -signal.SIGTERM
