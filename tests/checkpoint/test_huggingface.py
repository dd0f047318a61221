"""Parity with the transformers library, in both directions. Its models are random and small."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch

from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.checkpoint.class_head import COCO_CLASSES
from detr_d2.checkpoint.conversion import convert_checkpoint
from detr_d2.checkpoint.formats import EXPORTS, from_native, to_native
from detr_d2.structures import PaddedBatch
from detr_d2.utils.errors import UserError

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("safetensors")

SIZES = {
    "num_queries": 7,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_labels": 5,
}
RESNET18 = {
    "model_type": "resnet",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
RESNET50 = {**RESNET18, "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
OWN = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
TIMM = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
LEARNED = ("MODEL.DETR.POSITION_EMBEDDING", "learned")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def their_model(kind: str = "Detr", **options) -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for name, x in (*model.named_parameters(), *model.named_buffers()):
            if x.is_floating_point() and x.dim() == 1:
                is_scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "n.weight"))
                is_scale = is_scale or ("bn" in name and name.endswith("weight"))
                x.normal_(0.7 if is_scale else 0.0, 0.1)
            if name.endswith("running_var"):
                x.uniform_(0.5, 2.0)
    return model


@pytest.fixture
def make_model(make_model):
    """Build models whose padded batches behave as in transformers."""
    return partial(make_model, "MODEL.DETR.BATCH_INVARIANT", False)


def make_images(padded: bool) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Return two normalized images, padded with zeros, and their sizes."""
    sizes = [(64, 96), (50, 70)] if padded else [(64, 96), (64, 96)]
    pixels = torch.zeros(2, 3, 64, 96)
    generator = torch.Generator().manual_seed(0)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return pixels, sizes


@torch.no_grad()
def assert_same_outputs(theirs: torch.nn.Module, ours: torch.nn.Module, rows: slice = slice(None)) -> None:
    for padded in (False, True):
        pixels, sizes = make_images(padded)
        mask = torch.zeros(2, 64, 96, dtype=torch.long)
        for x, (height, width) in zip(mask, sizes, strict=True):
            x[:height, :width] = 1
        expected = theirs(pixel_values=pixels, pixel_mask=mask)
        predictions = ours.detr(PaddedBatch(pixels, sizes), all_layers=False)
        logits = expected.logits[..., rows]
        torch.testing.assert_close(predictions.logits[-1], logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(predictions.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-4)
        assert logits.std() > 0.01


@pytest.mark.parametrize(
    ("kind", "options", "ours"),
    [
        ("Detr", TIMM, ()),
        ("Detr", {**TIMM, "position_embedding_type": "learned"}, LEARNED),
        ("Detr", {**TIMM, "num_labels": 91}, ("MODEL.DETR.NUM_CLASSES", 91)),
        ("Detr", {**OWN, "backbone_config": RESNET18}, ()),
        ("TableTransformer", TIMM, ("MODEL.DETR.PRE_NORM", True)),
    ],
)
def test_their_saved_models_have_the_same_outputs_here(make_model, tmp_path, kind, options, ours):
    theirs = their_model(kind, **options)
    theirs.save_pretrained(tmp_path)
    model = make_model(*ours, seed=1)
    DetrCheckpointer(model, allow_new_head=False).load(str(tmp_path / "model.safetensors"))
    assert_same_outputs(theirs, model)


@pytest.mark.slow
def test_bottlenecks_and_dilation(make_model, tmp_path):
    fifty = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    for name, options, ours in (
        ("own", {**OWN, "backbone_config": RESNET50}, fifty),
        ("dc5", {**TIMM, "backbone": "resnet50", "dilation": True}, (*fifty, "MODEL.RESNETS.RES5_DILATION", 2)),
    ):
        theirs = their_model(**options)
        theirs.save_pretrained(tmp_path / name)
        source = str(tmp_path / name / "model.safetensors")
        model = make_model(*ours, seed=1)
        DetrCheckpointer(model, allow_new_head=False).load(source)
        assert_same_outputs(theirs, model)
        summary = convert_checkpoint(source, str(tmp_path / f"{name}.pth"))
        assert summary.architecture["MODEL.DETR.NHEADS"] == 4
        assert ("MODEL.RESNETS.RES5_DILATION 2" in str(summary)) == (name == "dc5")


def test_a_state_dict_of_the_running_library_loads_too(make_model, tmp_path):
    """Its names differ from those of its files since release 5."""
    theirs = their_model(**TIMM)
    torch.save(theirs.state_dict(), tmp_path / "mine.bin")
    model = make_model(seed=1)
    DetrCheckpointer(model, allow_new_head=False).load(str(tmp_path / "mine.bin"))
    assert_same_outputs(theirs, model)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("model.safetensors", ()),
        ("model.safetensors", LEARNED),
        ("model.safetensors", ("MODEL.DETR.PRE_NORM", True, *LEARNED)),
        ("pytorch_model.bin", ("MODEL.DETR.PRE_NORM", True)),
    ],
)
def test_our_export_has_the_same_outputs_there(make_model, tmp_path, file, options):
    model = make_model(*options)
    torch.save(
        {"model": model.state_dict(), "class_names": ["cat", "dog", "bird", "fish", "horse"]}, tmp_path / "a.pth"
    )
    output = tmp_path / "new folder" / file
    settings = {"MODEL.DETR.NHEADS": 4}
    summary = convert_checkpoint(str(tmp_path / "a.pth"), str(output), to="huggingface", settings=settings)
    assert sorted(os.listdir(output.parent)) == sorted(["config.json", file])
    kind = "TableTransformer" if "MODEL.DETR.PRE_NORM" in options else "Detr"
    assert f"{kind}ForObjectDetection.from_pretrained('{output.parent}')" in str(summary)
    theirs, info = getattr(transformers, f"{kind}ForObjectDetection").from_pretrained(
        output.parent, output_loading_info=True
    )
    # Learned positions have a name for each release of the library.
    assert all("position_embedding" in name for name in info.pop("unexpected_keys"))
    assert not any(info.values()), info
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "bird", 3: "fish", 4: "horse"}
    assert_same_outputs(theirs.eval(), model)
    back = tmp_path / "back.pth"
    assert convert_checkpoint(str(output), str(back)).architecture["MODEL.DETR.NHEADS"] == 4
    assert torch.load(back, weights_only=True)["class_names"] == ["cat", "dog", "bird", "fish", "horse"]


def test_a_coco_head_by_category_id_is_that_of_the_published_models(make_model, tmp_path):
    """81 native rows become 92, and unused ones are never predicted."""
    model = make_model("MODEL.DETR.NUM_CLASSES", 80)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    output = tmp_path / "coco" / "model.safetensors"
    settings = {"MODEL.DETR.NHEADS": 4}
    convert_checkpoint(str(tmp_path / "a.pth"), str(output), to="huggingface", coco_ids=True, settings=settings)
    theirs = transformers.DetrForObjectDetection.from_pretrained(output.parent).eval()
    labels = theirs.config.id2label
    assert (labels[1], labels[12], labels[18], labels[90]) == ("person", "N/A", "dog", "toothbrush")
    assert_same_outputs(theirs, model, [*(x["id"] for x in COCO_CLASSES), 91])
    logits = theirs(pixel_values=make_images(padded=False)[0]).logits
    unused = sorted(set(range(91)) - {x["id"] for x in COCO_CLASSES})
    assert len(unused) == 11
    for probabilities in (logits.softmax(-1), logits.sigmoid()):
        assert probabilities[..., unused].max() == 0.0


def test_names_of_the_classes_come_with_their_config(make_model, tmp_path, caplog):
    theirs = their_model(**TIMM, id2label={0: "cat", 1: "dog", 2: "bird", 3: "N/A", 4: "horse"})
    theirs.save_pretrained(tmp_path)
    model = make_model("MODEL.DETR.NUM_CLASSES", 2, seed=1)
    caplog.set_level("INFO", logger="detr_d2")
    checkpointer = DetrCheckpointer(model, class_names=["horse", "cat"], classes_by_name=True, allow_new_head=False)
    checkpointer.load(str(tmp_path / "model.safetensors"))
    assert "class_embed by name: 2 of 2 classes loaded (horse, cat)" in caplog.text
    assert_same_outputs(theirs, model, [4, 0, 5])


def test_their_segmentation_model_yields_its_box_model(make_model):
    names = their_model(**TIMM).state_dict()
    whole = {f"detr.{name}": x for name, x in names.items()}
    whole |= {"mask_head.conv1.conv.weight": torch.zeros(1), "bbox_attention.q_proj.weight": torch.zeros(1)}
    weights = to_native(whole)
    assert weights.format.name == "transformers DETR segmentation"
    assert sorted(weights.left_out) == ["bbox_attention.q_proj.weight", "mask_head.conv1.conv.weight"]
    make_model().load_state_dict(weights.tensors, strict=True)


def test_their_names_in_both_directions_are_equal_bit_by_bit(tmp_path):
    """A file of theirs, to our names and back."""
    from safetensors.torch import load_file

    their_model(**TIMM).save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    back = from_native(to_native(file).tensors, EXPORTS["huggingface"])
    assert back.keys() == file.keys()
    for name, x in file.items():
        np.testing.assert_array_equal(back[name].numpy(), x.numpy(), err_msg=name)


def test_what_they_lack_is_refused(save_smca, tmp_path):
    path, _ = save_smca("type2")
    output = tmp_path / "new" / "model.safetensors"
    with pytest.raises(UserError, match=r"transformers has no SMCA: .*--to d2"):
        convert_checkpoint(str(path), str(output), to="huggingface")
    assert not output.parent.exists()


def test_an_existing_config_is_kept(make_model, tmp_path):
    torch.save({"model": make_model().state_dict()}, tmp_path / "a.pth")
    (tmp_path / "config.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(UserError, match=r"config\.json exists"):
        convert_checkpoint(str(tmp_path / "a.pth"), str(tmp_path / "model.safetensors"), to="huggingface")
    assert json.loads((tmp_path / "config.json").read_text()) == {"mine": 1}
    assert not (tmp_path / "model.safetensors").exists()
