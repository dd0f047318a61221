"""Jobs of submitit, on this machine with its local executor."""

import os
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest

from detr_d2.cli import launch
from detr_d2.cli import main as commands
from detr_d2.cli.launch import Job, main

SUBMITTED = SimpleNamespace(job_id=42, paths=SimpleNamespace(stdout="42.out"))

submitit = pytest.importorskip("submitit", reason="submitit is installed in the newest environment only")


@pytest.fixture
def job_environment(monkeypatch):
    """Set what submitit's local executor sets for the second of two processes, and restore what a job exports."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_LOCAL_NTASKS", "2")
    for name in ("GLOBALID", "LOCALID"):
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", "1")


def test_a_job_runs_a_command_in_the_environment_of_torchrun(job_environment, monkeypatch):
    seen = []

    def command(words):
        seen.append((words, os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]))
        return 0

    monkeypatch.setattr(commands, "find_command", lambda name: command if name == "train" else None)
    Job(("train", "--num-gpus", "1"))()
    assert seen == [(("--num-gpus", "1"), "1", "2", "1")]


def test_a_stopped_job_is_handed_to_submitit(job_environment, monkeypatch):
    handled = []
    previous = signal.signal(signal.SIGUSR2, lambda number, frame: handled.append(number))
    monkeypatch.setattr(commands, "find_command", lambda name: lambda words: 128 + signal.SIGUSR2)
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR2)):
            Job(("train",))()
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert handled == [signal.SIGUSR2]


def test_a_job_in_the_queue_again_resumes():
    assert Job(("train", "A", "1")).checkpoint().function == Job(("train", "A", "1", "--resume"))
    assert Job(("train", "--resume")).checkpoint().function == Job(("train", "--resume"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "detr-d2 launch local needs a command: add one of train, eval, overfit"),
        (["slurm", "--gpus", "2", "predict"], "detr-d2 launch slurm needs a command"),
        (["local", "--nodes", "2", "train"], "--nodes counts machines of Slurm"),
        (["slurm", "train"], "This machine can't submit to Slurm"),
    ],
)
def test_mistakes(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_flags_before_the_command_are_those_of_the_job(monkeypatch, capsys):
    submitted = []
    monkeypatch.setattr(launch, "submit", lambda job, args: submitted.append((job, args)) or SUBMITTED)
    assert main(["slurm", "--nodes", "2", "--partition", "demo", "train", "--num-gpus", "1", "A", "1"]) == 0
    ((job, args),) = submitted
    assert job.words == ("train", "--num-gpus", "1", "A", "1")
    assert (args.cluster, args.nodes, args.partition) == ("slurm", 2, "demo")
    assert capsys.readouterr().out == "Submitted job 42. Its log: 42.out\n"


def test_missing_submitit(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["local", "train"]) == 1
    assert capsys.readouterr().err == "error: detr-d2 launch needs submitit: pip install 'detr_d2[slurm]'\n"
