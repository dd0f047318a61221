import pytest

from detr_d2.config import check_model_config, check_pixel_statistics, file_channels
from detr_d2.engine import Trainer
from detr_d2.utils.errors import UserError

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BGR_MEAN = RGB_MEAN[::-1]
R50 = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@pytest.fixture
def check(make_cfg):
    """Return a function that checks a config; its options override those of Base-DETR.yaml, which fit R50."""

    def make(*options) -> list[str]:
        return check_pixel_statistics(make_cfg("MODEL.RESNETS.DEPTH", 50, *options))

    return make


@pytest.mark.parametrize(
    "options",
    [
        ("MODEL.WEIGHTS", R50),
        ("MODEL.WEIGHTS", "torchvision://resnet101"),
        ("MODEL.WEIGHTS", "detr://detr-r50"),
        ("MODEL.WEIGHTS", "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth"),
        ("MODEL.WEIGHTS", ""),
        ("MODEL.WEIGHTS", "mine.pth"),
        # With fewer digits, as people write them.
        ("MODEL.WEIGHTS", R50, "MODEL.PIXEL_MEAN", [123.7, 116.3, 103.5], "MODEL.PIXEL_STD", [58.4, 57.1, 57.4]),
        # Detectron2's own defaults with the weights they are made for.
        (
            *("MODEL.WEIGHTS", MSRA, "INPUT.FORMAT", "BGR", "MODEL.RESNETS.STRIDE_IN_1X1", True),
            *("MODEL.PIXEL_MEAN", BGR_MEAN, "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ),
        # Pixels as they are, learned from nothing.
        ("MODEL.WEIGHTS", "", "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
    ],
)
def test_agreement(check, options):
    assert check(*options) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("MODEL.WEIGHTS", R50, "INPUT.FORMAT", "BGR"), ["INPUT.FORMAT is BGR"]),
        (("MODEL.WEIGHTS", "mine.pth", "INPUT.FORMAT", "BGR"), ["set INPUT.FORMAT RGB, or reverse MODEL.PIXEL_MEAN"]),
        (("MODEL.WEIGHTS", "", "MODEL.PIXEL_MEAN", BGR_MEAN), ["set INPUT.FORMAT BGR, or reverse MODEL.PIXEL_MEAN"]),
        (("MODEL.WEIGHTS", R50, "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]), ["MODEL.PIXEL_STD is [1.0, 1.0, 1.0]"]),
        (("MODEL.WEIGHTS", R50, "MODEL.RESNETS.STRIDE_IN_1X1", True), ["STRIDE_IN_1X1 is True"]),
        (
            ("MODEL.WEIGHTS", MSRA),
            ["INPUT.FORMAT is RGB", "MODEL.PIXEL_MEAN is", "MODEL.PIXEL_STD is", "STRIDE_IN_1X1 is False"],
        ),
        (
            ("MODEL.PIXEL_MEAN", [0.485, 0.456, 0.406], "MODEL.PIXEL_STD", [0.229, 0.224, 0.225]),
            ["Set MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375]"],
        ),
        (("MODEL.PIXEL_STD", [0.229, 0.224, 0.225]), ["MODEL.PIXEL_STD [58.395, 57.12, 57.375]"]),
        (("MODEL.PIXEL_STD", [58.0]), ["MODEL.PIXEL_MEAN has 3 numbers and MODEL.PIXEL_STD 1"]),
    ],
)
def test_contradictions(check, options, expected):
    """Images in another order or on another scale than the weights expect; messages name the keys and right values."""
    messages = check(*options)
    assert len(messages) == len(expected)
    for message, part in zip(messages, expected, strict=True):
        assert part in message


def test_small_resnets_have_no_1x1_convolution_to_stride(check):
    assert check("MODEL.WEIGHTS", R50, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STRIDE_IN_1X1", True) == []


BIT = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnetv2_50x1_bit", "MODEL.WEIGHTS", "")


def test_bit_with_imagenets_statistics(check):
    pytest.importorskip("timm")
    messages = check(*BIT, "MODEL.TIMM.PRETRAINED", True)
    assert [m.split(",")[-1] for m in messages] == [" 127.5]: set it so."] * 2
    half = [127.5, 127.5, 127.5]
    assert check(*BIT, "MODEL.TIMM.PRETRAINED", True, "MODEL.PIXEL_MEAN", half, "MODEL.PIXEL_STD", half) == []
    assert check(*BIT) == []


@pytest.mark.parametrize("name", ["no_such_model", "resnetv2_50x1_bit.no_such_weights"])
def test_unknown_timm_model_is_left_to_the_builder(check, name):
    assert check(*BIT, "MODEL.TIMM.PRETRAINED", True, "MODEL.TIMM.NAME", name) == []


def test_contradictions_are_logged_once_when_a_trainer_builds_the_model(make_cfg, caplog):
    cfg = make_cfg("INPUT.FORMAT", "BGR")
    Trainer.build_model(cfg)
    assert [x.getMessage() for x in caplog.records if x.levelname == "WARNING"] == check_pixel_statistics(cfg)
    assert len(check_pixel_statistics(cfg)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("INPUT.CHANNELS", 4), r"MODEL\.PIXEL_MEAN has 3 values, but INPUT\.CHANNELS is 4: set 4"),
        (("INPUT.CHANNELS", 1, "MODEL.PIXEL_MEAN", [9.0]), r"MODEL\.PIXEL_STD has 3 values, but INPUT\.CHANNELS is 1"),
        (("MODEL.PIXEL_STD", [9.0]), r"MODEL\.PIXEL_STD has 1 value, but INPUT\.CHANNELS is 3"),
        (("INPUT.FORMAT", "L"), r"MODEL\.PIXEL_MEAN has 3 values, but INPUT\.FORMAT is L: set 1"),
        (("INPUT.FORMAT", "L", "INPUT.CHANNELS", 4), r"INPUT\.FORMAT L converts images to gray.*set INPUT\.CHANNELS 1"),
        (("MODEL.PIXEL_STD", [9.0, 9.0, 0.0]), r"MODEL\.PIXEL_STD is .*: set positive values"),
        (("INPUT.CHANNELS", 0), r"INPUT\.CHANNELS is 0: set 1 or more"),
    ],
)
def test_statistics_of_another_number_of_channels_are_refused(make_cfg, options, message):
    with pytest.raises(UserError, match=message):
        check_model_config(make_cfg(*options))


def test_bands_of_any_scale_are_accepted(check, make_cfg):
    bands = ("INPUT.CHANNELS", 2, "MODEL.PIXEL_MEAN", [0.2, 0.3], "MODEL.PIXEL_STD", [0.1, 0.1], "MODEL.WEIGHTS", R50)
    check_model_config(make_cfg(*bands))
    assert check(*bands) == []
    gray = ("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [50.0])
    for options in (gray, (*gray, "INPUT.CHANNELS", 1)):
        check_model_config(make_cfg(*options))
        assert file_channels(make_cfg(*options)) == 3
