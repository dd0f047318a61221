import os

import pytest
import torch

from detr_d2.checkpoint import read_checkpoint
from detr_d2.checkpoint.class_head import COCO_CLASSES, coco_head_by_ids
from detr_d2.checkpoint.conversion import convert_checkpoint
from detr_d2.checkpoint.formats import EXPORTS, find_format, from_native, to_native
from detr_d2.checkpoint.huggingface import make_config
from detr_d2.checkpoint.key_maps import CheckpointFormat
from detr_d2.utils.errors import UserError

ARCHITECTURES = [
    (),
    ("MODEL.DETR.POSITION_EMBEDDING", "learned", "MODEL.DETR.PRE_NORM", True),
    ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "MODEL.DETR.DEC_LAYERS", 1),
    ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", "type4"),
    ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.SMCA.DYNAMIC_SCALE", "type1"),
]


@pytest.mark.parametrize(
    ("options", "to"),
    [(options, "original") for options in ARCHITECTURES] + [(options, "huggingface") for options in ARCHITECTURES[:3]],
)
def test_conversion_and_back_is_equal_bit_by_bit(make_model, options, to):
    """Transformers has no SMCA."""
    tensors = make_model(*options).state_dict()
    foreign = from_native(tensors, EXPORTS[to])
    assert not foreign.keys() & tensors.keys()
    back = to_native(foreign)
    assert back.format.name == ("SMCA" if "SmcaTransformer" in options else EXPORTS[to].name)
    assert back.left_out == []
    assert back.tensors.keys() == tensors.keys()
    for name, x in tensors.items():
        assert torch.equal(back.tensors[name], x), name


def test_the_originals_names_are_its_own(make_cfg, make_original):
    """The export has exactly the names and tensors of the file that we started from."""
    original = make_original(make_cfg()).state_dict()
    exported = from_native(to_native(original).tensors, EXPORTS["original"])
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], x) for name, x in original.items())


@torch.no_grad()
def test_our_model_gives_its_outputs_in_the_original(
    make_cfg, make_model, make_original, original_batch, make_inputs, tmp_path
):
    model = make_model("MODEL.DETR.NUM_CLASSES", 80, "MODEL.DETR.BATCH_INVARIANT", False)
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    output = str(tmp_path / "theirs.pth")
    summary = convert_checkpoint(str(tmp_path / "ours.pth"), output, to="original", coco_ids=True)
    assert "81 -> 92 rows" in str(summary)
    assert "--resume" in str(summary)
    cfg = make_cfg()
    original = make_original(cfg, seed=5, num_classes=91)
    original.load_state_dict(torch.load(output, weights_only=True)["model"], strict=True)
    inputs = make_inputs([(64, 96), (50, 70)], [1, 1])
    theirs = original(original_batch(inputs, cfg)[0])
    ours = model.detr(model.preprocess_image(inputs), all_layers=False)
    rows = [*(x["id"] for x in COCO_CLASSES), 91]
    torch.testing.assert_close(theirs["pred_logits"][..., rows], ours.logits[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs["pred_boxes"], ours.boxes[-1], rtol=0, atol=1e-5)
    unused = sorted(set(range(91)) - set(rows))
    assert theirs["pred_logits"].softmax(-1)[..., unused].max() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_coco_come_back(dtype):
    """81 rows become 92 and 81 again, in half precision too."""
    head = {"detr.class_embed.weight": torch.randn(81, 8).to(dtype), "detr.class_embed.bias": torch.randn(81).to(dtype)}
    coco = coco_head_by_ids(92)
    spread = coco.to_ids(head)
    assert spread["detr.class_embed.weight"].shape == (92, 8)
    assert all(x.dtype == dtype and x.isfinite().all() for x in spread.values())
    back = coco.to_contiguous(spread)
    assert all(torch.equal(back[name], x) for name, x in head.items())
    # 12, 26, 29 and 30 are not category ids of COCO.
    assert not spread["detr.class_embed.weight"][[12, 26, 29, 30]].any()
    assert (spread["detr.class_embed.bias"][[0, 12, 26, 29, 30]] < -9000).all()


@pytest.mark.parametrize("kind", ["type1", "type3"])
def test_smca_comes_from_the_authors_and_goes_back(save_smca, tmp_path, kind):
    path, weights = save_smca(kind, num_classes=91)
    summary = convert_checkpoint(str(path), str(tmp_path / "ours.pth"))
    assert "SMCA" in str(summary)
    config = str(summary).splitlines()[-1]
    assert "MODEL.DETR.TRANSFORMER SmcaTransformer" in config
    assert "MODEL.DETR.CLASS_LOSS focal" in config
    assert "MODEL.DETR.NHEADS 4" in config
    assert ("DYNAMIC_SCALE type1" in config) == (kind == "type1")
    assert read_checkpoint(str(tmp_path / "ours.pth"))["model"]["detr.class_embed.bias"].shape == (81,)
    convert_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth"), to="original", coco_ids=True)
    back = read_checkpoint(str(tmp_path / "theirs.pth"))["model"]
    assert back.keys() == weights.keys()
    rows = [*(x["id"] for x in COCO_CLASSES), 91]
    for name, x in weights.items():
        kept = rows if name.startswith("class_embed") else slice(None)
        assert torch.equal(back[name][kept] if x.dim() else back[name], x[kept] if x.dim() else x), name


@pytest.mark.parametrize(
    ("source_classes", "arguments", "message"),
    [
        (5, {"to": "original", "coco_ids": True}, "6 rows is not over COCO's 80 classes"),
        (91, {"to": "d2", "coco_ids": True}, "--coco-ids is for --to original"),
        (91, {"to": "original", "num_classes": 3}, "Only --to d2 can do without a class head"),
        (5, {"settings": {"MODEL.DETR.NHEADS": 3}}, r"3 attention heads do not divide 32 channels\. Set --nheads"),
        (5, {"settings": {"MODEL.RESNETS.RES5_DILATION": 2}}, "DC5 models have a ResNet-50 or deeper"),
        (91, {"to": "caffe"}, "--to 'caffe' is not a format: choose one of d2, original, huggingface"),
    ],
)
def test_what_makes_no_sense_is_not_written(save_original_shapes, tmp_path, source_classes, arguments, message):
    source = save_original_shapes("MODEL.DETR.NUM_CLASSES", source_classes)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(str(source), str(tmp_path / "new" / "out.pth"), **arguments)
    assert not (tmp_path / "new").exists()


def test_a_head_of_other_classes_is_not_spread(make_model, tmp_path):
    state_dict = make_model("MODEL.DETR.NUM_CLASSES", 80).state_dict()
    torch.save({"model": state_dict, "class_names": [f"part {i}" for i in range(80)]}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="not over COCO's 80 classes"):
        convert_checkpoint(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), to="original", coco_ids=True)


def test_a_published_head_keeps_its_rows_for_others(save_original_shapes, tmp_path):
    """92 rows are what the original and transformers publish."""
    source = save_original_shapes("MODEL.DETR.NUM_CLASSES", 91)
    output = str(tmp_path / "out" / "pytorch_model.bin")
    convert_checkpoint(str(source), output, to="huggingface")
    assert read_checkpoint(output)["class_labels_classifier.bias"].shape == (92,)
    config = (tmp_path / "out" / "config.json").read_text()
    assert '"1": "person"' in config
    assert '"12": "N/A"' in config


def test_of_two_files_neither_stays_when_one_fails(save_original_shapes, tmp_path, monkeypatch):
    source = save_original_shapes()
    folder = tmp_path / "out"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dumps", full)
    with pytest.raises(UserError, match=r"pytorch_model\.bin can't be written.*No space"):
        convert_checkpoint(str(source), str(folder / "pytorch_model.bin"), to="huggingface")
    assert os.listdir(folder) == []


def test_a_resnet_that_timm_lacks_is_refused():
    architecture = {
        "MODEL.DETR.TRANSFORMER": "DetrTransformer",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RESNETS.NUM_GROUPS": 32,
    }
    with pytest.raises(UserError, match="usual width"):
        make_config(architecture, None)


def test_wildcards_may_change_order():
    reordered = CheckpointFormat("reordered", signature=(), rules=(("a.<n>.b.<wb>", "c.<wb>.d.<n>"),))
    assert reordered.native_name("a.12.b.bias") == "c.bias.d.12"
    assert reordered.foreign_name("c.bias.d.12") == "a.12.b.bias"
    assert reordered.foreign_name("cabias.d.12") is None


def test_a_name_that_the_format_lacks_is_reported(make_model):
    tensors = {**make_model().state_dict(), "detr.mask_head.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"no names for detr\.mask_head\.weight"):
        from_native(tensors, EXPORTS["original"])
    assert find_format(from_native(make_model().state_dict(), EXPORTS["original"])) is EXPORTS["original"]
