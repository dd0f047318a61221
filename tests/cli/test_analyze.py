"""The command ``analyze`` against PyTorch's own FLOP counter, which counts two per multiply-add, and no norms."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_d2.cli.analyze import ATTENTION, attention_flops, count, format_report, main

SMALL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DETR.HIDDEN_DIM", "32"),
    *("MODEL.DETR.ENC_LAYERS", "1", "MODEL.DETR.DEC_LAYERS", "2", "MODEL.DETR.DIM_FEEDFORWARD", "48"),
    *("MODEL.DETR.NUM_CLASSES", "5", "MODEL.DETR.NUM_OBJECT_QUERIES", "7"),
)


@pytest.mark.parametrize("size", [(64, 96), (65, 130)])
def test_flops_are_pytorchs(make_model, size):
    model = make_model()
    operators = count(model, size)["operators"]
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])
    assert 2 * sum(operators[name] for name in ("conv", "linear", "attention")) == counter.get_total_flops()


def test_attention_is_what_its_products_are():
    """Fvcore counts the two matrix products, but not the fused operator."""

    class Fused(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    class Written(nn.Module):
        def forward(self, q, k, v):
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    inputs = tuple(torch.rand(2, 3, n, c) for n, c in ((5, 8), (11, 8), (11, 6)))
    fused = FlopCountAnalysis(Fused(), inputs).set_op_handle(ATTENTION, attention_flops)
    written = FlopCountAnalysis(Written(), inputs).by_operator()["matmul"]
    assert fused.total() == written == 2 * 3 * 5 * 11 * (8 + 6)


def test_statistics_of_one_module(make_model):
    """The class head: 7 queries, 32 channels, 5 classes and no-object."""
    model = make_model()
    statistics = count(model, (64, 64))
    assert statistics["flops"]["detr.class_embed"] == 7 * 32 * 6
    assert statistics["activations"]["detr.class_embed"] == 7 * 6
    children = ("backbone", "transformer", "input_proj", "class_embed", "bbox_embed")
    assert statistics["flops"][""] == sum(statistics["flops"][f"detr.{name}"] for name in children)


def test_activations_count_attention(make_model):
    """4 features: 4 projections, attention and 2 linear layers of the encoder's layer; its norms do not count."""
    statistics = count(make_model("MODEL.DETR.ENC_LAYERS", 1), (64, 64))
    assert statistics["activations"]["detr.transformer.encoder.layers.0"] == 4 * (4 * 32 + 32 + 48 + 32)


def test_parameters_are_the_originals(capsys, tmp_path, repository, make_cfg, make_original):
    original = make_original(make_cfg("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2))
    config = str(repository / "configs" / "detr_256_6_6_torchvision.yaml")
    file = tmp_path / "report.json"
    main(["--config-file", config, "--size", "64", "96", "--size", "32", "32", "--json", str(file), *SMALL])
    report = json.loads(file.read_text())
    expected = sum(x.numel() for x in original.parameters())
    assert report["parameters"][""] == expected
    assert report["trainable_parameters"] == sum(x.numel() for x in original.parameters() if x.requires_grad)
    assert [x["size"] for x in report["sizes"]] == [[32, 32], [64, 96]]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{expected:,} parameters")
    assert "32 x 32" in printed
    assert "detr.transformer.decoder" not in format_report(report, depth=2)
    assert "detr.transformer.decoder" in format_report(report, depth=3)


def test_mean_over_a_dataset(capsys, repository, tmp_path):
    """Two landscapes and a portrait of the same pixels: as many FLOPs each, whatever their order."""
    sizes = [(100, 200), (100, 200), (200, 100)]
    DatasetCatalog.register("analyzed", lambda: [{"height": h, "width": w} for h, w in sizes])
    try:
        options = [*SMALL, "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
        config = str(repository / "configs" / "detr_256_6_6_torchvision.yaml")
        file = str(tmp_path / "report.json")
        main(["--config-file", config, "--dataset", "analyzed", "--json", file, *options])
    finally:
        DatasetCatalog.remove("analyzed")
    report = json.loads(Path(file).read_text())
    # The longest side limits: 96 by 48.
    assert [(x["size"], x["images"]) for x in report["sizes"]] == [([48, 96], 2), ([96, 48], 1)]
    assert "mean of 3 images of 2 sizes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "no_such_dataset"], "--dataset no_such_dataset is not registered"),
        (["--size", "0", "5"], "--size: give two numbers"),
        (["--size", "64", "64", "MODEL.DETR.NHEADS", "5"], "MODEL.DETR.NHEADS"),
        (["--config-file", "no_such.yaml"], "no_such.yaml does not exist"),
    ],
)
def test_mistakes_are_one_message(capsys, arguments, message):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_smca(make_model):
    """Its attention adds dimensions to queries and keys, or a bias: it is counted all the same."""
    model = make_model("MODEL.DETR.TRANSFORMER", "SmcaTransformer")
    statistics = count(model, (64, 64))
    assert statistics["flops"]["detr.transformer.decoder"] > 0
    assert statistics["operators"]["attention"] > 0
