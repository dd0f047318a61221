import argparse
import collections
import json
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from detr_d2.checkpoint import allow_original_checkpoints, read_checkpoint
from detr_d2.utils.errors import UserError


def write(path, content, kind: str) -> str:
    """Write as current torch, as torch before 1.6, or as a plain pickle."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return str(path)


KINDS = ("zip", "legacy", "pickle")


class Attack:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_a_training_run_saves_comes_back(tmp_path, kind):
    """The namespace of arguments and the optimizer of an original file, arrays and scalars of numpy."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-4, masks=False, device=torch.device("cpu"), dtype=torch.float16),
        "half": torch.arange(5).half()[1:],
        "parameter": nn.Parameter(torch.arange(2.0)),
        "numpy": [np.float64(0.25), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([True])],
        "random": [torch.get_rng_state(), np.random.RandomState(0).get_state()],
        "others": {"set": {1, 2}, "bytes": b"\x00\xff", "size": torch.Size([2, 3]), "none": None},
    }
    read = read_checkpoint(write(tmp_path / "file", content, kind))
    assert read["args"] == content["args"]
    assert read["epoch"] == 3
    assert read["others"] == content["others"]
    assert read["lr_scheduler"]["milestones"] == collections.Counter([2, 4])
    for name, x in model.state_dict().items():
        torch.testing.assert_close(read["model"][name], x, rtol=0, atol=0)
    state = optimizer.state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(read["optimizer"]["state"][0]["exp_avg"], state, rtol=0, atol=0)
    torch.testing.assert_close(read["half"], content["half"], rtol=0, atol=0)
    torch.testing.assert_close(read["parameter"], content["parameter"], rtol=0, atol=0)
    for x, y in zip(read["numpy"], content["numpy"], strict=True):
        np.testing.assert_array_equal(x, y)
    torch.testing.assert_close(read["random"][0], content["random"][0], rtol=0, atol=0)
    np.testing.assert_array_equal(read["random"][1][1], content["random"][1][1])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_numpy_arrays(tmp_path, protocol):
    """Detectron2's model zoo has such files."""
    weight = np.random.RandomState(0).randn(3, 2).astype("float32")
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": weight}, "__author__": "x"}, protocol=protocol))
    np.testing.assert_array_equal(read_checkpoint(str(path))["model"]["w"], weight)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_is_refused_by_name_and_does_nothing(tmp_path, kind):
    """A file that would call a function is refused with a hint, and nothing is executed."""
    path = write(tmp_path / "evil.pth", {"model": {"w": torch.zeros(1)}, "x": Attack(tmp_path / "hit")}, kind)
    with pytest.raises(UserError, match=r"evil\.pth .*(posix|nt)\.system.*--trust"):
        read_checkpoint(path)
    assert not (tmp_path / "hit").exists()


def test_trust_unpickles_everything(tmp_path):
    path = write(tmp_path / "mine.pth", {"model": {}, "x": Attack(tmp_path / "hit")}, "zip")
    read_checkpoint(path, trust=True)
    assert (tmp_path / "hit").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        # a function, and an attribute of an allowed class
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08argparse\x8c\x12Namespace.__init__\x93.",
        # a class attribute and a function's attribute set through their state
        b"cargparse\nNamespace\n(N(S'dump_patches'\nI01\ndtb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(S'__wrapped__'\nI01\ndb.",
        # an array of objects and a type that holds objects
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.",
        # text that is encoded with a codec of the attacker's choice
        b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
    ],
)
def test_ways_around_the_list_are_refused(tmp_path, pickled):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickled)
    with pytest.raises(UserError, match=r"evil\.pkl holds more than weights"):
        read_checkpoint(str(path))
    assert not hasattr(argparse.Namespace, "dump_patches")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "__wrapped__")


def test_a_nested_torch_file_is_subject_to_the_same_list(tmp_path):
    inner = tmp_path / "inner"
    torch.save(Attack(tmp_path / "hit"), inner)

    class Outer:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.read_bytes(),)

    path = write(tmp_path / "evil.pkl", {"x": Outer()}, "pickle")
    with pytest.raises(UserError, match="system"):
        read_checkpoint(path)
    assert not (tmp_path / "hit").exists()


def test_pickled_modules_of_old_files_are_refused(tmp_path):
    """Torch compares their source, and may write what differs to a file."""
    path = tmp_path / "module.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": nn.Linear(2, 2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"module\.pth"):
        read_checkpoint(str(path))


def test_only_storages_are_persistent(tmp_path):
    """In a file of old torch a class with its source could replace a storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("module", argparse.Namespace, "file.py", "source") if obj == "here" else None

    with open(tmp_path / "evil.pth", "wb") as file:
        for x in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}):
            pickle.dump(x, file, protocol=2)
        Pickler(file, protocol=2).dump({"model": "here"})
    with pytest.raises(UserError, match="a persistent object that is not a tensor's storage"):
        read_checkpoint(str(tmp_path / "evil.pth"))


def test_torchscript_is_refused(tmp_path):
    path = str(tmp_path / "script.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_named(tmp_path, kind):
    """At every length, the error names the file."""
    write(tmp_path / "whole", {"model": {"w": torch.randn(50)}}, kind)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut.pth"
    for length in [*range(1, 40), *range(40, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth"):
            read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"<html>404</html>", "another kind"), (b"\x00" * 999, "another kind")]
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"file\.pth .*{message}"):
        read_checkpoint(str(path))


def test_archives_of_the_oldest_torch_are_refused(tmp_path):
    path = tmp_path / "old.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, arcname="storages")
    with pytest.raises(UserError, match=r"old\.tar"):
        read_checkpoint(str(path))


def test_an_archive_that_begins_as_a_torch_file_is_refused(tmp_path):
    """Torch would unpack it."""
    start = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    header = bytearray(tarfile.TarInfo("name" * 10).tobuf(tarfile.USTAR_FORMAT))
    header[: len(start)] = start
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path = tmp_path / "both.pth"
    path.write_bytes(header + bytes(1024))
    assert tarfile.is_tarfile(path)
    with pytest.raises(UserError, match="a tar archive"):
        read_checkpoint(str(path))


def write_safetensors(path) -> str:
    """Write the format of the specification: the length of a JSON header, the header, the bytes of the tensors."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.arange(3, dtype="<f4").tobytes())
    return str(path)


@pytest.mark.parametrize("name", ["model.safetensors", "without_its_suffix"])
def test_safetensors_are_read(tmp_path, name):
    pytest.importorskip("safetensors")
    assert read_checkpoint(write_safetensors(tmp_path / name))["w"].tolist() == [0.0, 1.0, 2.0]


def test_cut_safetensors_are_named(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "cut.safetensors"
    write_safetensors(path)
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.safetensors can't be read as a checkpoint"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("name", ["model.safetensors", "without_its_suffix"])
def test_safetensors_without_the_package_say_how_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=rf"{name} is a safetensors file.*pip install safetensors"):
        read_checkpoint(write_safetensors(tmp_path / name))


def test_other_objects_than_a_dict_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds a Tensor, not a dict"):
        read_checkpoint(write(tmp_path / "x.pth", torch.zeros(1), "zip"))


def test_missing_files_folders_and_hosts_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist.*MODEL\.WEIGHTS"):
        read_checkpoint(str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/model\.pth can't be downloaded"):
        read_checkpoint("http://127.0.0.1:9/model.pth")


def test_urls_are_downloaded(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    write(served / "model.pth", {"model": {"w": torch.arange(3.0)}}, "zip")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(served)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        read = read_checkpoint(f"http://127.0.0.1:{port}/model.pth")
        assert read["model"]["w"].tolist() == [0.0, 1.0, 2.0]
        with pytest.raises(UserError, match=r"absent\.pth can't be downloaded"):
            read_checkpoint(f"http://127.0.0.1:{port}/absent.pth")
    finally:
        server.kill()
        server.wait()


def test_detectron2s_own_checkpointer_reads_original_files(tmp_path):
    """By default, torch's weights_only, which is on since release 2.6, refuses their namespace of arguments."""
    allow_original_checkpoints()
    path = write(tmp_path / "x.pth", {"model": {"weight": torch.ones(1, 1)}, "args": argparse.Namespace(lr=1)}, "zip")
    model = nn.Linear(1, 1, bias=False)
    DetectionCheckpointer(model).load(path)
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("bomb", [True, False], ids=["compressed", "overlapping"])
def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path, bomb):
    path = write(tmp_path / "x.pth", {"model": {"w": torch.zeros(100_000), "v": torch.zeros(100_000)}}, "zip")
    if bomb:
        with zipfile.ZipFile(path) as whole:
            entries = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
    else:
        # Three more entries of the bytes of the storage, the largest.
        with zipfile.ZipFile(path, "a") as archive:
            largest = max(archive.infolist(), key=lambda x: x.file_size)
            archive.filelist += [largest] * 3
            archive._didModify = True
    with pytest.raises(UserError, match=r"x\.pth can't be read .*unpacks to more than its size"):
        read_checkpoint(path)
