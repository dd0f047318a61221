"""Runs that are interrupted, and started again by torchrun on several machines, or by submitit."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from detectron2.utils.env import TORCH_VERSION

from detr_d2.cli import launch

# Of rank 1, in the third iteration of the first attempt.
SCRIPT = """
import json, os, signal, sys
from detectron2.data import DatasetCatalog, MetadataCatalog
from detr_d2.cli.train import main
from detr_d2.engine import Trainer

records = json.load(open("records.json"))
DatasetCatalog.register("noise", lambda: records)
MetadataCatalog.get("noise").thing_classes = list("abcde")

def run_step(self, of_trainer=Trainer.run_step):
    if self.iter == 2 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    of_trainer(self)

Trainer.run_step = run_step
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(TORCH_VERSION < (2, 6), reason="torchrun of early versions may not restart on two machines")
def test_two_machines_of_torchrun(make_run_cfg, noise_records, repository, tmp_path):
    """A signal to one process stops both; torchrun starts both again, and the run is resumed without --resume."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "records.json").write_text(json.dumps(noise_records))
    (tmp_path / "config.yaml").write_text(make_run_cfg(tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 100).dump())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "1", "--rdzv_backend", "c10d"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "--rdzv_endpoint", f"127.0.0.1:{port}"]
    command += ["--rdzv_id", "a", "--local_addr", "127.0.0.1", "train.py", "--config-file", "config.yaml"]
    environ = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    environ |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    try:
        texts = [node.communicate(timeout=500)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    codes = [node.returncode for node in nodes]
    assert codes == [0, 0], "\n".join(texts)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert len(re.findall(r"INFO: Started by torchrun: process 0 of 2, ", log)) == 2
    assert "Stopped by SIGTERM after iteration 3, which is saved" in log
    assert re.findall(r"Starting training from iteration (\d)", log) == ["0", "4"]
    assert sum(text.count("stopped by SIGTERM; the run can be continued with --resume") for text in texts) == 2
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 5


# A job that receives the signal of a cluster in its third iteration, unless it has been in the queue before.
MODULE = """
import json, os, signal
from detectron2.data import DatasetCatalog, MetadataCatalog
from detr_d2.cli.launch import Job
from detr_d2.engine import Trainer

class SignalledJob(Job):
    def __call__(self):
        DatasetCatalog.register("noise", lambda: json.load(open("records.json")))
        MetadataCatalog.get("noise").thing_classes = list("abcde")
        step = Trainer.run_step

        def run_step(trainer):
            if trainer.iter == 2 and "--resume" not in self.words:
                os.kill(os.getpid(), signal.SIGUSR2)
            step(trainer)

        Trainer.run_step = run_step
        super().__call__()
"""


@pytest.mark.slow
def test_a_signalled_job_is_queued_again_and_resumes(make_run_cfg, noise_records, tmp_path, monkeypatch, repository):
    pytest.importorskip("submitit", reason="submitit is installed in the newest environment only")
    (tmp_path / "signalled_job.py").write_text(MODULE)
    (tmp_path / "records.json").write_text(json.dumps(noise_records))
    (tmp_path / "config.yaml").write_text(make_run_cfg(tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 100).dump())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    job = importlib.import_module("signalled_job").SignalledJob(("train", "--config-file", "config.yaml"))
    args = launch.main.make_parser().parse(["local", "--gpus", "0", "--time", "9", "--folder", "jobs"])
    launch.submit(job, args).result()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.findall(r"Starting training from iteration (\d)", log) == ["0", "3"]
    assert "Started by submitit: one process." in log
    assert "Stopped by SIGUSR2 after iteration 2" in log
    assert (tmp_path / "run" / "model_final.pth").exists()
