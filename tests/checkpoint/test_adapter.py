import logging

import pytest
import torch

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.checkpoint.adapter import adapt_channels
from detr_d2.checkpoint.class_head import COCO_CLASSES
from detr_d2.checkpoint.formats import to_native
from detr_d2.utils.errors import UserError

QUERIES = "detr.query_embed.weight"
HEAD = ("detr.class_embed.weight", "detr.class_embed.bias")


@pytest.fixture(autouse=True)
def _log_info(caplog):
    caplog.set_level(logging.INFO, logger="detr_d2")


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def differing(a: dict, b: dict) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize(
    ("queries", "message"),
    [(9, "query_embed: 7 of 9 rows loaded"), (3, "query_embed: 3 of 7 rows loaded, the model has no more than 3")],
)
def test_queries_that_fit_are_copied_and_the_rest_stays(save_original, make_model, caplog, queries, message):
    """With fewer or more queries than in the file."""
    path, weights = save_original()
    model = make_model("MODEL.DETR.NUM_OBJECT_QUERIES", queries, seed=1)
    built = snapshot(model)
    DetrCheckpointer(model, resize_queries=True).load(str(path))
    loaded = model.state_dict()
    count = min(queries, 7)
    assert torch.equal(loaded[QUERIES][:count], weights["query_embed.weight"][:count])
    assert torch.equal(loaded[QUERIES][count:], built[QUERIES][count:])
    assert differing(loaded, {**to_native(weights).tensors, QUERIES: loaded[QUERIES]}) == set()
    assert message in caplog.text


def test_queries_are_strict_by_default(save_original, make_model):
    path, _ = save_original()
    model = make_model("MODEL.DETR.NUM_OBJECT_QUERIES", 9)
    built = snapshot(model)
    with pytest.raises(UserError, match=r"NUM_OBJECT_QUERIES: 7 in the file, 9.*\n.*\n.*LOAD\.QUERIES resize"):
        DetrCheckpointer(model).load(str(path))
    assert differing(model.state_dict(), built) == set()


def test_an_equal_number_of_queries_is_loaded_without_a_note(save_original, make_model, caplog):
    path, weights = save_original()
    model = make_model(seed=1)
    DetrCheckpointer(model, resize_queries=True).load(str(path))
    assert differing(model.state_dict(), to_native(weights).tensors) == set()
    assert "query_embed" not in caplog.text


def test_queries_of_another_width_do_not_fit(save_original_shapes, make_model):
    path = save_original_shapes("MODEL.DETR.HIDDEN_DIM", 64)
    with pytest.raises(UserError, match=r"HIDDEN_DIM: 64 in the file, 32 in the model"):
        DetrCheckpointer(make_model("MODEL.DETR.NUM_OBJECT_QUERIES", 9), resize_queries=True).load(str(path))


def test_untrained_queries_are_not_evaluated(save_original, make_model):
    path, weights = save_original()
    model = make_model("MODEL.DETR.NUM_OBJECT_QUERIES", 9)
    with pytest.raises(UserError, match=r"holds 7 object queries; the model has 9.*NUM_OBJECT_QUERIES 7 or less"):
        DetrCheckpointer(model, resize_queries=True, allow_new_head=False).load(str(path))
    model = make_model("MODEL.DETR.NUM_OBJECT_QUERIES", 4, seed=1)
    DetrCheckpointer(model, resize_queries=True, allow_new_head=False).load(str(path))
    assert torch.equal(model.state_dict()[QUERIES], weights["query_embed.weight"][:4])


def rows_of(weights: dict, indices: list[int]) -> list[torch.Tensor]:
    return [weights[f"class_embed.{x}"][indices] for x in ("weight", "bias")]


def test_coco_classes_are_found_by_name(save_original, make_model, caplog):
    """Dog is COCO's category 18, person 1; case makes no difference."""
    path, weights = save_original(num_classes=91)
    model = make_model("MODEL.DETR.NUM_CLASSES", 3, seed=1)
    built = snapshot(model)
    DetrCheckpointer(model, class_names=["Dog", "unicorn", "person"], classes_by_name=True).load(str(path))
    loaded = model.state_dict()
    for name, expected in zip(HEAD, rows_of(weights, [18, 1, 91]), strict=True):
        assert torch.equal(loaded[name][[0, 2, 3]], expected)
        assert torch.equal(loaded[name][1], built[name][1])
    assert "class_embed by name: 2 of 3 classes loaded (Dog, person), new: unicorn" in caplog.text
    count = len(loaded)
    assert f"loaded {count} of {count} tensors" in caplog.text
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]


def test_eighty_classes_in_another_order_are_found_by_name(save_original, make_model):
    path, weights = save_original(num_classes=91)
    model = make_model("MODEL.DETR.NUM_CLASSES", 80, seed=1)
    names = [x["name"] for x in COCO_CLASSES]
    DetrCheckpointer(model, class_names=names[::-1], classes_by_name=True).load(str(path))
    expected = rows_of(weights, [*(x["id"] for x in COCO_CLASSES[::-1]), 91])
    for name, x in zip(HEAD, expected, strict=True):
        assert torch.equal(model.state_dict()[name], x)


def test_our_own_files_name_their_classes(make_model, tmp_path, caplog):
    source = make_model("MODEL.DETR.NUM_CLASSES", 3)
    DetrCheckpointer(source, str(tmp_path), class_names=["cat", "dog", "bird"]).save("a")
    model = make_model("MODEL.DETR.NUM_CLASSES", 2, seed=1)
    checkpointer = DetrCheckpointer(
        model, class_names=["bird", "cat"], classes_by_name=True, resize_queries=True, allow_new_head=False
    )
    checkpointer.load(str(tmp_path / "a.pth"))
    for name in HEAD:
        assert torch.equal(model.state_dict()[name], source.state_dict()[name][[2, 0, 3]])
    with pytest.raises(UserError, match=r"a\.pth does not hold the classes fish\."):
        DetrCheckpointer(model, class_names=["bird", "fish"], classes_by_name=True, allow_new_head=False).load(
            str(tmp_path / "a.pth")
        )


def test_missing_class_names_are_an_error(save_original, make_model):
    path, _ = save_original()
    model = make_model()
    with pytest.raises(UserError, match=r"by_name: .*original\.pth does not name its 5 classes"):
        DetrCheckpointer(model, class_names=list("abcde"), classes_by_name=True).load(str(path))
    path, _ = save_original(num_classes=91)
    with pytest.raises(UserError, match=r"by_name: there are no names for the model's 5 classes"):
        DetrCheckpointer(model, classes_by_name=True).load(str(path))
    with pytest.raises(UserError, match=r"by_name: there are 3 names for the model's 5 classes"):
        DetrCheckpointer(model, class_names=list("abc"), classes_by_name=True).load(str(path))


def test_a_resumed_run_gets_what_it_saved(make_model, tmp_path):
    """Surgery on the weights that it started from is not repeated."""
    model = make_model("MODEL.DETR.NUM_CLASSES", 2)
    surgery = {"classes_by_name": True, "resize_queries": True}
    DetrCheckpointer(model, str(tmp_path), class_names=["cat", "dog"], **surgery).save("a")
    other = make_model("MODEL.DETR.NUM_CLASSES", 2, seed=1)
    DetrCheckpointer(other, str(tmp_path), class_names=["dog", "cat"], **surgery).resume_or_load("", resume=True)
    assert differing(other.state_dict(), model.state_dict()) == set()
    fewer = make_model("MODEL.DETR.NUM_CLASSES", 2, "MODEL.DETR.NUM_OBJECT_QUERIES", 3)
    with pytest.raises(UserError, match=r"NUM_OBJECT_QUERIES: 7 in the file, 3 in the model"):
        DetrCheckpointer(fewer, str(tmp_path), **surgery).resume_or_load("", resume=True)


STEM = "detr.backbone.0.backbone.stem.conv1.weight"


def channels(count: int) -> tuple:
    return ("INPUT.CHANNELS", count, "MODEL.PIXEL_MEAN", [100.0] * count, "MODEL.PIXEL_STD", [50.0] * count)


@torch.no_grad()
def test_a_gray_image_has_the_results_that_it_has_as_rgb(make_model, tmp_path, caplog):
    statistics = ("MODEL.PIXEL_MEAN", [100.0] * 3, "MODEL.PIXEL_STD", [50.0] * 3)
    rgb, gray = make_model(*statistics), make_model(*channels(1), seed=1)
    torch.save({"model": rgb.state_dict()}, tmp_path / "rgb.pth")
    DetrCheckpointer(gray).load(str(tmp_path / "rgb.pth"))
    assert f"{STEM} adapted from 3 to 1 channels" in caplog.text
    image = torch.randint(256, (1, 64, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (expected,), (found,) = rgb([{"image": image.repeat(3, 1, 1)}]), gray([{"image": image}])
    torch.testing.assert_close(
        found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor, atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_first_convolution_is_adapted_as_timm_does(make_model, count):
    """Of one channel timm sums in the same way; of two its repeats are cut in the same order."""
    timm = pytest.importorskip("timm.models")
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapt_channels(weight, count), timm.adapt_input_conv(count, weight.clone()))


def test_backbone_weights_are_adapted(make_model, torchvision_resnet, tmp_path):
    weights = torchvision_resnet
    torch.save(weights, tmp_path / "resnet18.pth")
    model = make_model(*channels(5))
    DetrCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    conv = weights["conv1.weight"]
    torch.testing.assert_close(model.state_dict()[STEM], torch.cat((conv, conv[:, :2]), dim=1) * 3 / 5)


def test_weights_of_more_channels_are_for_them(make_model, tmp_path):
    torch.save({"model": make_model(*channels(4)).state_dict()}, tmp_path / "four.pth")
    with pytest.raises(UserError, match=r"INPUT\.CHANNELS: 4 in the file, 3 in the model"):
        DetrCheckpointer(make_model()).load(str(tmp_path / "four.pth"))
    torch.save({"model": make_model().state_dict()}, tmp_path / "three.pth")
    with pytest.raises(UserError, match=r"three\.pth is for images of 3 channels; the model has 4 \(INPUT\.CHANNELS\)"):
        DetrCheckpointer(make_model(*channels(4)), allow_new_head=False).load(str(tmp_path / "three.pth"))
