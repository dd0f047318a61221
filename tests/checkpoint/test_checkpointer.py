import logging
import os

import pytest
import torch
import torch.distributed
from detectron2.engine import DefaultPredictor
from torch import nn

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.checkpoint.formats import to_native
from detr_d2.utils.errors import UserError

NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture(autouse=True)
def _log_info(caplog):
    caplog.set_level(logging.INFO, logger="detr_d2")


def assert_same(model: nn.Module, state_dict: dict) -> None:
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, state_dict[name], rtol=0, atol=0, msg=name)


def test_an_original_file_loads_directly(save_original, make_model, caplog):
    path, weights = save_original()
    model = make_model(seed=1)
    rest = DetrCheckpointer(model).load(str(path))
    assert_same(model, to_native(weights).tensors)
    count = len(model.state_dict())
    assert f"loaded {count} of {count} tensors from {path} (original DETR)" in caplog.text
    assert "optimizer" not in rest
    assert "args" not in rest


def test_training_state_of_an_original_file_stays_out(save_original, make_model):
    path, _ = save_original()
    model = make_model(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetrCheckpointer(model, optimizer=optimizer).load(str(path))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_coco_head_fits_80_classes(save_original, make_model):
    """The 92 rows over category ids become 81 of contiguous classes."""
    path, weights = save_original(num_classes=91)
    model = make_model("MODEL.DETR.NUM_CLASSES", 80)
    DetrCheckpointer(model, allow_new_head=False).load(str(path))
    bias = model.state_dict()["detr.class_embed.bias"]
    theirs = weights["class_embed.bias"]
    assert bias.shape == (81,)
    # person is id 1, toothbrush, the last, id 90, and no-object row 91.
    assert [bias[0], bias[79], bias[80]] == [theirs[1], theirs[90], theirs[91]]


def test_a_new_head_is_the_only_thing_that_may_differ(save_original, make_model, caplog):
    """Fine-tuning with other classes re-initializes the class head alone, and the log says so in one line."""
    path, weights = save_original(num_classes=80)
    model = make_model("MODEL.DETR.NUM_CLASSES", 3)
    head = {k: x.clone() for k, x in model.state_dict().items() if "class_embed" in k}
    DetrCheckpointer(model).load(str(path))
    assert_same(model, {**to_native(weights).tensors, **head})
    count = len(model.state_dict())
    summaries = [x for x in caplog.messages if "class_embed" in x]
    assert len(summaries) == 1
    assert f"loaded {count - 2} of {count} tensors" in summaries[0]
    assert "class_embed re-initialized, 81 -> 4 rows" in summaries[0]


def test_a_new_head_is_refused_in_evaluation(save_original, make_model):
    """An untrained head would only give bad results."""
    path, _ = save_original(num_classes=80)
    model = make_model("MODEL.DETR.NUM_CLASSES", 3)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(UserError, match=r"81 rows \(80 classes\).*NUM_CLASSES 3"):
        DetrCheckpointer(model, allow_new_head=False).load(str(path))
    assert_same(model, before)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS"):
        DetrCheckpointer(model, allow_new_head=False).load("")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.DETR.NUM_OBJECT_QUERIES", 9), r"MODEL\.DETR\.NUM_OBJECT_QUERIES: 9 in the file, 7 in the model"),
        (("MODEL.DETR.HIDDEN_DIM", 64), r"MODEL\.DETR\.HIDDEN_DIM: 64 in the file, 32 in the model"),
        (("MODEL.DETR.ENC_LAYERS", 4), r"MODEL\.DETR\.ENC_LAYERS: 4 in the file, 2 in the model"),
        (("MODEL.DETR.DEC_LAYERS", 1), r"MODEL\.DETR\.DEC_LAYERS: 1 in the file, 3 in the model"),
        (("MODEL.DETR.DIM_FEEDFORWARD", 16), r"MODEL\.DETR\.DIM_FEEDFORWARD: 16 in the file, 48 in the model"),
        (("MODEL.DETR.PRE_NORM", True), r"MODEL\.DETR\.PRE_NORM: True in the file, False in the model"),
        (("MODEL.DETR.POSITION_EMBEDDING", "learned"), r"MODEL\.DETR\.POSITION_EMBEDDING: learned in the file, sine"),
        (("MODEL.RESNETS.DEPTH", 34), r"MODEL\.RESNETS\.DEPTH: 34 in the file, 18 in the model"),
    ],
)
def test_another_architecture_is_described_in_config_keys(save_original_shapes, make_model, options, message):
    path = save_original_shapes(*options)
    with torch.device("meta"):
        model = make_model("MODEL.DEVICE", "meta")
    with pytest.raises(UserError, match=message) as error:
        DetrCheckpointer(model).load(str(path))
    assert str(path) in str(error.value)
    assert "NUM_CLASSES" not in str(error.value)
    assert len(str(error.value).splitlines()) < 8


def test_smca_weights_in_a_plain_detr_name_both(save_smca, make_model):
    """The message names what the file is and what the config builds."""
    path, _ = save_smca("type3")
    message = r"smca\.pth is an SMCA type3 checkpoint; the config builds DetrTransformer\. Set .*SmcaTransformer.*type3"
    with pytest.raises(UserError, match=message):
        DetrCheckpointer(make_model()).load(str(path))


def test_other_weights_in_an_smca_model_name_both(save_smca, save_original, make_model):
    """Plain weights in an SMCA model, and weights of another kind of SMCA."""
    model = make_model("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", "type2")
    path, _ = save_original()
    message = r"original\.pth is a plain DETR checkpoint; the config builds SmcaTransformer \(SMCA type2\)"
    with pytest.raises(UserError, match=message):
        DetrCheckpointer(model).load(str(path))
    path, _ = save_smca("type3")
    message = r"is an SMCA type3 checkpoint; the config builds SmcaTransformer \(SMCA type2\)\..*DYNAMIC_SCALE type3"
    with pytest.raises(UserError, match=message):
        DetrCheckpointer(model).load(str(path))


@pytest.mark.parametrize("kind", ["type1", "type2", "type3", "type4"])
def test_the_authors_smca_files_load(save_smca, make_model, caplog, kind):
    path, weights = save_smca(kind)
    model = make_model("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", kind)
    DetrCheckpointer(model, allow_new_head=False).load(str(path))
    count = len(model.state_dict())
    assert f"loaded {count} of {count} tensors from {path} (SMCA)" in caplog.text
    for name in ("point1.layers.2.bias", "point2.weight", "norm4.weight"):
        name = f"transformer.decoder.layers.0.{name}"
        assert torch.equal(model.state_dict()[f"detr.{name}"], weights[name])


def test_a_missing_or_unexpected_tensor_is_named(make_model, tmp_path):
    model = make_model()
    weights = dict(model.state_dict())
    weights["detr.extra.weight"] = weights.pop("detr.bbox_embed.layers.1.bias")
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"(?s)model: detr\.bbox_embed\.layers\.1\.bias.*file: detr\.extra\.weight"):
        DetrCheckpointer(model).load(str(tmp_path / "odd.pth"))


def test_backbone_weights_fill_the_backbone(make_model, torchvision_resnet, tmp_path, caplog):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision_resnet, path)
    model = make_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    DetrCheckpointer(model).load(str(path))
    backbone = to_native(torchvision_resnet).tensors
    assert_same(model, {**before, **backbone})
    assert f"loaded {len(backbone)} of {len(before)} tensors" in caplog.text
    assert "stays at its initialization" in caplog.text
    with pytest.raises(UserError, match="backbone"):
        DetrCheckpointer(model, allow_new_head=False).load(str(path))


def test_backbone_weights_of_another_depth_are_refused(make_model, torchvision_resnet, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision_resnet, path)
    with pytest.raises(UserError, match=r"MODEL\.RESNETS\.DEPTH: 18 in the file, 34 in the model"):
        DetrCheckpointer(make_model("MODEL.RESNETS.DEPTH", 34)).load(str(path))


def test_what_is_saved_is_loaded(make_model, tmp_path):
    model = make_model()
    checkpointer = DetrCheckpointer(model, str(tmp_path), class_names=NAMES)
    checkpointer.save("model_0000004", iteration=4)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004.pth"]
    other = make_model(seed=1)
    rest = DetrCheckpointer(other, str(tmp_path), class_names=NAMES).resume_or_load("", resume=True)
    assert_same(other, model.state_dict())
    assert rest["iteration"] == 4
    assert rest["class_names"] == NAMES


def test_a_resumed_run_gets_its_training_state_back(make_model, tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetrCheckpointer(model, str(tmp_path), optimizer=optimizer).save("a")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DetrCheckpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpointer = DetrCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_resuming_refuses_another_head(make_model, tmp_path):
    """A resumed run must find its own class head; a new run may start from the same file."""
    DetrCheckpointer(make_model(), str(tmp_path)).save("a")
    checkpointer = DetrCheckpointer(make_model("MODEL.DETR.NUM_CLASSES", 3), str(tmp_path))
    with pytest.raises(UserError, match=r"a\.pth holds a class head of 6 rows"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)


def test_a_failed_load_does_not_spoil_the_next(make_model, tmp_path):
    model = make_model()
    checkpointer = DetrCheckpointer(model, str(tmp_path))
    checkpointer.save("a")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:1000])
    for bad in ("absent.pth", "cut.pth"):
        with pytest.raises(UserError, match=bad):
            checkpointer.load(str(tmp_path / bad))
    checkpointer.load(str(tmp_path / "a.pth"))


def test_an_interrupted_save_leaves_the_old_file(make_model, tmp_path, monkeypatch):
    """A file is complete or absent."""
    checkpointer = DetrCheckpointer(make_model(), str(tmp_path))
    checkpointer.save("first")
    checkpointer.save("model")
    old = (tmp_path / "model.pth").read_bytes()

    def interrupted(data, file):
        file.write(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        for name in ("model", "next"):
            with pytest.raises(KeyboardInterrupt):
                checkpointer.save(name)
    assert (tmp_path / "model.pth").read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["first.pth", "last_checkpoint", "model.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model.pth"


def test_other_class_names_are_warned_of(make_model, tmp_path, caplog):
    """A head of as many rows is loaded, though its classes may be others."""
    model = make_model()
    DetrCheckpointer(model, str(tmp_path), class_names=NAMES).save("a")
    path = str(tmp_path / "a.pth")
    DetrCheckpointer(model, class_names=NAMES).load(path)
    DetrCheckpointer(model).load(path)
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]
    DetrCheckpointer(model, class_names=["cat", "dog", "ship", "fish", "car"]).load(path)
    (warning,) = [x.message for x in caplog.records if x.levelno >= logging.WARNING]
    assert "2: 'bird' in the file, 'ship' here; 4: 'horse' in the file, 'car' here" in warning


def test_a_wrapped_model_is_loaded_and_saved(make_model, tmp_path):
    model = make_model()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        DetrCheckpointer(wrapped, str(tmp_path)).save("a")
        saved = {"model": wrapped.state_dict()}
        torch.save(saved, tmp_path / "wrapped.pth")
        for name in ("a.pth", "wrapped.pth"):
            other = make_model(seed=1)
            DetrCheckpointer(nn.parallel.DistributedDataParallel(other)).load(str(tmp_path / name))
            assert_same(other, model.state_dict())
    finally:
        torch.distributed.destroy_process_group()


def test_detectron2s_predictor_loads_an_original_file(save_original, make_cfg):
    """DefaultPredictor has Detectron2's checkpointer, not ours. The head of 92 rows fits 80 classes."""
    path, weights = save_original(num_classes=91)
    predictor = DefaultPredictor(make_cfg("MODEL.WEIGHTS", str(path), "MODEL.DETR.NUM_CLASSES", 80))
    assert_same(predictor.model, to_native(weights, num_classes=80).tensors)
