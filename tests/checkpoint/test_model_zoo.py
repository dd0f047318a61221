import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch.testing import assert_close

from detr_d2.checkpoint import DetrCheckpointer, model_zoo
from detr_d2.utils.errors import UserError

BOX = ("detr-r50", "detr-r50-dc5", "detr-r101", "detr-r101-dc5")
PANOPTIC = ("detr-r50-panoptic", "detr-r50-dc5-panoptic", "detr-r101-panoptic")


def test_all_published_models_are_listed():
    assert tuple(model_zoo.PUBLISHED) == BOX + PANOPTIC
    assert all(re.fullmatch(name + r"-[0-9a-f]{8}\.pth", x.file) for name, x in model_zoo.PUBLISHED.items())


@pytest.mark.parametrize("name", BOX)
def test_config_of_a_published_model(name):
    cfg = model_zoo.get_config(name, trained=True)
    assert cfg.MODEL.WEIGHTS == model_zoo.get_checkpoint_url(name) == model_zoo.PUBLISHED[name].url
    assert cfg.MODEL.RESNETS.DEPTH == (101 if "r101" in name else 50)
    assert cfg.MODEL.RESNETS.RES5_DILATION == (2 if "dc5" in name else 1)


def test_configs_by_file(repository):
    name = "detr_256_6_6_torchvision_dc5"
    expected = repository / "configs" / f"{name}.yaml"
    assert Path(model_zoo.get_config_file(name)) == Path(model_zoo.get_config_file(f"{name}.yaml")) == expected
    assert model_zoo.get_checkpoint_url(f"{name}.yaml") == model_zoo.PUBLISHED["detr-r50-dc5"].url


def test_untrained_starts_as_the_config_says():
    assert model_zoo.get_config("detr-r101").MODEL.WEIGHTS == "torchvision://resnet101"


@pytest.mark.parametrize("name", PANOPTIC)
def test_config_of_a_panoptic_model(name, repository):
    cfg = model_zoo.get_config(name, trained=True)
    assert cfg.MODEL.WEIGHTS == model_zoo.get_checkpoint_url(name) == model_zoo.PUBLISHED[name].url
    assert cfg.MODEL.DETR.FROZEN_WEIGHTS == ""
    assert cfg.MODEL.RESNETS.DEPTH == (101 if "r101" in name else 50)
    assert cfg.MODEL.RESNETS.RES5_DILATION == (2 if "dc5" in name else 1)
    assert (cfg.MODEL.MASK_ON, cfg.MODEL.DETR.PANOPTIC.ENABLED, cfg.MODEL.DETR.NUM_CLASSES) == (True, True, 133)
    file = Path(model_zoo.get_config_file(name)).name
    assert model_zoo.get_checkpoint_url(file) == model_zoo.PUBLISHED[name].url
    # Untrained, the mask head learns over the box model in the same file.
    assert model_zoo.get_config(file).MODEL.DETR.FROZEN_WEIGHTS == model_zoo.PUBLISHED[name].url


def test_results_are_those_of_the_authors():
    """Box AP, mask AP and PQ of the README of facebookresearch/detr."""
    found = [(x.box_ap, x.mask_ap, x.pq) for x in model_zoo.PUBLISHED.values()]
    assert found[:4] == [(42.0, None, None), (43.3, None, None), (43.5, None, None), (44.9, None, None)]
    assert found[4:] == [(38.8, 31.1, 43.4), (40.2, 31.9, 44.6), (40.1, 33.0, 45.1)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model_zoo.get_config_file("detr_r51"), "config detr_r51 does not exist.*Did you mean .*detr-r50"),
        (lambda: model_zoo.get_checkpoint_url("detr_r50_640.yaml"), "No weights are published for 'detr_r50_640.yaml'"),
        (lambda: model_zoo.get_config("detr_128_2_3_cpu", trained=True), "No weights are published"),
    ],
)
def test_unknown_names(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_get_loads_frozen_weights(make_original_segmentation, make_cfg, monkeypatch, tmp_path):
    """A config for masks names the box model that the new mask head is trained over."""
    options = (
        *("MODEL.MASK_ON", True, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8, "MODEL.DETR.NUM_CLASSES", 133),
        *("MODEL.DETR.FROZEN_WEIGHTS", str(tmp_path / "panoptic.pth")),
    )
    cfg = make_cfg(*options)
    original = make_original_segmentation(cfg, num_classes=250)
    torch.save({"model": original.state_dict()}, tmp_path / "panoptic.pth")
    monkeypatch.setattr(model_zoo, "get_config", lambda *args: cfg)
    model = model_zoo.get("detr-r50-panoptic", device="cpu")
    assert torch.equal(model.detr.query_embed.weight, original.detr.query_embed.weight)
    assert torch.equal(model.detr.class_embed.weight[132], original.detr.class_embed.weight[200])
    assert not torch.equal(model.detr.mask_head.lay1.weight, original.mask_head.lay1.weight)
    trained = {name.split(".")[1] for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {"bbox_attention", "mask_head"}


def test_get_builds_and_loads(make_original, make_cfg, monkeypatch, tmp_path):
    """A published file, its 92 rows brought to COCO's 80 classes, in a model ready to be trained on."""
    cfg = make_cfg("MODEL.DETR.NUM_CLASSES", 80)
    original = make_original(cfg, num_classes=91)
    torch.save({"model": original.state_dict()}, tmp_path / "detr-r50.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "detr-r50.pth")
    requested = []
    monkeypatch.setattr(model_zoo, "get_config", lambda *args: requested.append(args) or cfg)
    model = model_zoo.get("detr-r50", trained=True, device="cpu")
    assert requested == [("detr-r50", True)]
    assert model.training
    assert torch.equal(model.detr.query_embed.weight, original.query_embed.weight)
    # The last category of COCO, toothbrush, has id 90.
    assert torch.equal(model.detr.class_embed.weight[79], original.class_embed.weight[90])
    cfg.MODEL.DETR.NUM_CLASSES = 7
    with pytest.raises(UserError, match=r"92 rows.*MODEL\.DETR\.NUM_CLASSES"):
        model_zoo.get("detr-r50", trained=True, device="cpu")


@pytest.fixture(autouse=True)
def _registered():
    model_zoo.register_path_handlers()
    model_zoo.register_path_handlers()


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


def test_torchvision_urls_are_torchvisions():
    """The first weights of a model are those that DETR was trained from."""
    models = torchvision.models
    assert model_zoo.torchvision_url("resnet101") == models.ResNet101_Weights.IMAGENET1K_V1.url
    assert model_zoo.torchvision_url("resnet50/IMAGENET1K_V2") == models.ResNet50_Weights.IMAGENET1K_V2.url
    assert model_zoo.torchvision_url("resnet18") == models.ResNet18_Weights.IMAGENET1K_V1.url


def test_detr_urls():
    assert model_zoo.PUBLISHED["detr-r101-dc5"].url == "https://dl.fbaipublicfiles.com/detr/detr-r101-dc5-a2e86def.pth"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torchvision://resnet99", "torchvision://resnet99.*resnet101"),
        ("torchvision://resnet18/IMAGENET1K_V2", "resnet18 has IMAGENET1K_V1"),
        ("detr://detr-r51", "no published model 'detr-r51': choose one of detr-r50,"),
    ],
)
def test_unknown_short_names(path, message):
    with pytest.raises(UserError, match=message):
        PathManager.get_local_path(path)
    assert not PathManager.exists(path)


def test_names_exist_without_a_download(downloads):
    assert PathManager.exists("torchvision://resnet152")
    assert PathManager.isfile("detr://detr-r50")
    assert not downloads


def test_a_short_name_is_opened(downloads, tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    downloads[model_zoo.PUBLISHED["detr-r50"].url] = str(tmp_path / "file")
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
