from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch.testing import assert_close

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.checkpoint.model_zoo import detr_url, register_path_handlers, torchvision_url
from detr_d2.utils.errors import UserError


@pytest.fixture(autouse=True)
def registered():
    register_path_handlers()
    register_path_handlers()


@pytest.fixture
def downloads(monkeypatch):
    """Addresses and the local files that are "downloaded" from them; any other address fails."""
    files = {}
    original = PathManager.get_local_path
    web = "https://"

    def get_local_path(path, *args, **kwargs):
        return files[path] if path.startswith(web) else original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    return files


def test_torchvision_addresses_are_torchvisions():
    """The first weights of a model are those that DETR was trained from."""
    models = torchvision.models
    assert torchvision_url("resnet101") == models.ResNet101_Weights.IMAGENET1K_V1.url
    assert torchvision_url("resnet50/IMAGENET1K_V2") == models.ResNet50_Weights.IMAGENET1K_V2.url
    assert torchvision_url("resnet18") == models.ResNet18_Weights.IMAGENET1K_V1.url


def test_detr_addresses():
    assert detr_url("detr-r101-dc5") == "https://dl.fbaipublicfiles.com/detr/detr-r101-dc5-a2e86def.pth"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torchvision://resnet99", "torchvision://resnet99.*resnet101"),
        ("torchvision://resnet18/IMAGENET1K_V2", "resnet18 has IMAGENET1K_V1"),
        ("detr://detr-r51", "no published model 'detr-r51': choose one of detr-r50,"),
    ],
)
def test_unknown_names(path, message):
    with pytest.raises(UserError, match=message):
        PathManager.get_local_path(path)
    assert not PathManager.exists(path)


def test_names_exist_without_a_download(downloads):
    assert PathManager.exists("torchvision://resnet152")
    assert PathManager.isfile("detr://detr-r50")
    assert not downloads


def test_opened(downloads, tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    downloads[detr_url("detr-r50")] = str(tmp_path / "file")
    with Path(PathManager.get_local_path("detr://detr-r50")).open("rb") as file:
        assert file.read() == b"weights"


@torch.no_grad()
def test_torchvision_weights_are_loaded(make_cfg, downloads, tmp_path, repository):
    """R-101 from torchvision's file: the backbone's features are torchvision's."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet101(weights=None).eval()
    torch.save(resnet.state_dict(), tmp_path / "resnet101.pth")
    downloads[torchvision.models.ResNet101_Weights.IMAGENET1K_V1.url] = str(tmp_path / "resnet101.pth")
    config = repository / "configs" / "detr_256_6_6_torchvision_r101.yaml"
    cfg = make_cfg()
    small = cfg.MODEL.DETR.clone()
    cfg.merge_from_file(str(config))
    cfg.MODEL.DETR = small
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    model = build_model(cfg).eval()
    DetrCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    image = torch.randn(1, 3, 64, 64)
    expected = image
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        expected = getattr(resnet, name)(expected)
    features = model.detr.backbone[0].backbone(image)["res5"]
    assert_close(features, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
