"""Tests that count page faults in new processes instead of measuring time; this process keeps its allocator."""

import os
import subprocess
import sys

import pytest

from detr_d2.utils import allocator
from detr_d2.utils.allocator import VARIABLES, keep_freed_memory

# The file alone, which takes a moment; the package takes seconds.
BUFFER = f"""
import ctypes, mmap, os, resource, runpy
keep_freed_memory = runpy.run_path({allocator.__file__!r})["keep_freed_memory"]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 64 << 20

def use():
    buffer = libc.malloc(SIZE)
    ctypes.memset(buffer, 1, SIZE)
    libc.free(buffer)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
"""
FAULTS = f"""{BUFFER}
kept = [keep_freed_memory() for _ in range(times)]
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*[*kept, *counts])
"""
FORK = f"""{BUFFER}
keep_freed_memory()
use()
kept = resident()
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(kept, resident())
"""
PAGES = (64 << 20) // 4096

glibc_only = pytest.mark.skipif(allocator._glibc() is None, reason="glibc's malloc")


def in_new_process(code: str, **variables: str) -> list[str]:
    clean = {name: x for name, x in os.environ.items() if name not in (*VARIABLES, "GLIBC_TUNABLES")}
    run = subprocess.run([sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return run.stdout.split()


@glibc_only
@pytest.mark.parametrize("times", [0, 1, 2])
def test_freed_memory_is_reused_without_page_faults(times):
    *kept, first, second, third = in_new_process(f"times = {times}\n{FAULTS}")
    assert kept == ["True"] * times
    assert int(first) > 0.9 * PAGES
    for faults in (second, third):
        assert (int(faults) < 0.01 * PAGES) == (times > 0)


@glibc_only
@pytest.mark.parametrize(
    "variables", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}], ids=str
)
def test_settings_of_the_user_stay(variables):
    kept, *faults = in_new_process(f"times = 1\n{FAULTS}", **variables)
    assert kept == "False"
    assert int(faults[-1]) > 0.9 * PAGES


@glibc_only
def test_free_memory_is_returned_before_a_fork():
    """A child would keep its copy of it."""
    before, after = map(int, in_new_process(FORK))
    assert before - after > 0.9 * (64 << 20)


@pytest.mark.slow
@glibc_only
def test_importing_the_package_changes_nothing():
    *_, third = in_new_process(f"import detr_d2\ntimes = 0\n{FAULTS}")
    assert int(third) > 0.9 * PAGES


class Libc:
    """C library that records calls of mallopt, and refuses some options."""

    def __init__(self, *refused: int):
        self.refused = refused
        self.calls = []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return int(option not in self.refused)

    def gnu_get_libc_version(self) -> bytes:
        return b"2.31"


@pytest.fixture
def load(monkeypatch):
    """Return a function that replaces this machine's C library."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator, "_return_before_forks", lambda: None)
    for name in (*VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return lambda libc: monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)


def test_old_versions_that_refuse_a_high_threshold_avoid_mappings(load):
    libc = Libc(-3)
    load(libc)
    assert keep_freed_memory()
    assert libc.calls == [(-3, 2**31 - 1), (-4, 0), (-1, -1)]


def test_false_when_nothing_was_set(load):
    load(Libc(-3, -4))
    assert not keep_freed_memory()
    load(object())  # as musl: without mallopt
    assert not keep_freed_memory()


def test_other_systems(load, monkeypatch):
    libc = Libc()
    load(libc)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    assert not libc.calls
