"""Results and errors of worker processes, and their end."""

import os
import signal
import time

import pytest
import torch

from benchmarks.processes import WorkerProcess
from detr_d2.utils.errors import UserError


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Target:
    def __init__(self):
        self.calls = 0
        self.child: WorkerProcess | None = None

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def pid(self) -> int:
        return os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def tensors(self, count: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [torch.full((3,), i, dtype=torch.bfloat16) for i in range(count)]

    def open_files(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def fail(self, kind: str) -> None:
        raise {
            "mistake": UserError("MODEL.X is wrong: set Y."),
            "defect": ZeroDivisionError("a defect"),
            "two arguments": TwoArguments("one", "two"),
        }[kind]

    def unreadable(self):
        return lambda: None

    def sleep(self) -> None:
        time.sleep(1000)

    def own_child(self) -> int:
        self.child = WorkerProcess(Target(), "child")
        return self.child.call("pid")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def process():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    with WorkerProcess(Target(), "target") as process:
        torch.set_num_threads(threads)
        yield process


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_object_lives_in_the_other_process(process):
    assert process.call("pid") != os.getpid()
    assert [process.call("count"), process.call("count")] == [1, 2]
    assert process.call("threads") == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_tensors_are_copied(process):
    """They are not shared memory, which needs one file per tensor."""
    ours, theirs = len(os.listdir("/proc/self/fd")), process.call("open_files")
    found = process.call("tensors", 200)
    assert all(torch.equal(x, torch.full((3,), i, dtype=torch.bfloat16)) for i, x in enumerate(found))
    assert len(os.listdir("/proc/self/fd")) == ours
    assert process.call("open_files") == theirs


def test_errors_are_raised_here(process):
    with pytest.raises(UserError, match=r"^MODEL.X is wrong: set Y.$"):
        process.call("fail", "mistake")
    with pytest.raises(ZeroDivisionError, match="a defect") as caught:
        process.call("fail", "defect")
    assert "in fail\n" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^TwoArguments: one and two$"):
        process.call("fail", "two arguments")
    with pytest.raises(Exception, match=r"lambda|pickle"):
        process.call("unreadable")
    assert process.call("count")


@pytest.mark.slow
def test_a_process_that_is_killed_is_reported_and_its_children_end():
    with WorkerProcess(Target(), "theirs") as process:
        pids = process.call("pid"), process.call("own_child")
        with pytest.raises(UserError, match=r"of theirs ended with exit code -9, killed, perhaps because memory"):
            process.call("die")
        with pytest.raises(UserError, match=r"process of theirs ended"):
            process.call("count")
    until = time.monotonic() + 60
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


@pytest.fixture
def interrupt():
    """Return a function that schedules Ctrl-C."""

    def act(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, act)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.2)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.slow
def test_an_interruption_ends_long_work(interrupt):
    process = WorkerProcess(Target(), "target")
    pid = process.call("pid")
    # A terminal sends it to all processes: this one has to end the other.
    os.kill(pid, signal.SIGINT)
    assert process.call("pid") == pid
    interrupt()
    with pytest.raises(KeyboardInterrupt), process:
        process.call("sleep")
    assert process._process.returncode == -signal.SIGTERM
