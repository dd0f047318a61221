import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torchvision.models import resnet18, resnet50

from detr_d2.checkpoint import native_state_dict
from detr_d2.checkpoint.adapter import NOTHING, WeightsAdapter
from detr_d2.checkpoint.architecture import infer_architecture
from detr_d2.checkpoint.formats import FORMATS, find_format, recognize, to_native
from detr_d2.checkpoint.key_maps import UNSUPPORTED
from detr_d2.utils.errors import UserError

BACKBONE = "detr.backbone.0.backbone."


def detectron2_resnet(depth: int) -> torch.nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    return build_backbone(cfg).eval()


def test_torchvision_weights_give_torchvisions_features(torchvision_resnet):
    weights = to_native(torchvision_resnet, source="resnet18.pth")
    assert weights.format.name == "torchvision ResNet"
    assert {x.split(".")[-1] for x in weights.left_out} == {"num_batches_tracked", "weight", "bias"}
    assert [x for x in weights.left_out if "num_batches" not in x] == ["fc.weight", "fc.bias"]
    ours = detectron2_resnet(18)
    ours.load_state_dict({name.removeprefix(BACKBONE): x for name, x in weights.tensors.items()}, strict=True)
    theirs = resnet18(weights=None)
    theirs.load_state_dict(torchvision_resnet)
    theirs.eval().fc = torch.nn.Identity()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = ours(image)["res5"].mean((2, 3))
        torch.testing.assert_close(features, theirs(image), rtol=1e-4, atol=1e-4)


def test_bottlenecks_have_their_names_too():
    with torch.device("meta"):
        weights = resnet50(weights=None).state_dict()
    names = detectron2_resnet(50).state_dict().keys()
    assert {BACKBONE + x for x in names} == to_native(weights).tensors.keys()


def test_a_plain_resnet_of_timm_is_one_of_torchvision():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    weights = to_native(theirs.state_dict())
    assert weights.format.name == "torchvision ResNet"
    ours = detectron2_resnet(18)
    ours.load_state_dict({name.removeprefix(BACKBONE): x for name, x in weights.tensors.items()}, strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)["res5"], theirs.forward_features(image), rtol=1e-4, atol=1e-4)


def test_detectron2_pickle_weights_reach_the_backbone(torchvision_resnet):
    """Names as in Detectron2's own tools/convert-torchvision-to-d2.py, classifier included."""
    arrays = {BACKBONE + k: x for k, x in to_native(torchvision_resnet).tensors.items()}
    arrays = {k.replace(BACKBONE, ""): x.numpy() for k, x in arrays.items()}
    arrays |= {"stem.fc.weight": np.zeros((10, 512)), "stem.conv1.norm.num_batches_tracked": np.zeros(())}
    checkpoint = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    weights = to_native(checkpoint)
    assert weights.format.name == "Detectron2 ResNet"
    assert weights.tensors.keys() == to_native(torchvision_resnet).tensors.keys()
    assert sorted(weights.left_out) == ["stem.conv1.norm.num_batches_tracked", "stem.fc.weight"]
    name = f"{BACKBONE}res3.1.conv2.weight"
    np.testing.assert_array_equal(weights.tensors[name], torchvision_resnet["layer2.1.conv2.weight"])


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        ("model", ("MODEL.DETR.PRE_NORM", True)),
        ("bare", ("MODEL.DETR.POSITION_EMBEDDING", "learned")),
        ("parallel", ()),
        ("state_dict", ()),
    ],
)
def test_original_names_become_those_of_our_model(make_cfg, make_original, make_model, options, wrap):
    """Under "model" or "state_dict", bare, and with the prefix of a data-parallel model."""
    original = make_original(make_cfg(*options)).state_dict()
    prefix = "module." if wrap == "parallel" else ""
    weights = {prefix + name: x for name, x in original.items()}
    weights = to_native(weights if wrap == "bare" else {"state_dict" if wrap == "state_dict" else "model": weights})
    assert weights.format.name == "original DETR"
    assert weights.left_out == []
    model = make_model(*options)
    model.load_state_dict(weights.tensors, strict=True)
    for theirs, ours in (
        ("transformer.encoder.layers.1.norm2.bias", "transformer.encoder.layers.1.norm2.bias"),
        ("class_embed.bias", "class_embed.bias"),
        ("backbone.0.body.bn1.bias", "backbone.0.backbone.stem.conv1.norm.bias"),
        ("backbone.0.body.layer3.0.downsample.1.running_var", "backbone.0.backbone.res4.0.shortcut.norm.running_var"),
    ):
        torch.testing.assert_close(model.state_dict()[f"detr.{ours}"], original[theirs], rtol=0, atol=0)


def test_the_box_model_in_a_segmentation_model_is_loaded(segmentation_weights, make_model):
    """The old converter garbled such files: it wrote names in backbone.0.backbone.detr."""
    original = segmentation_weights(num_classes=5)
    weights = to_native({"model": original})
    assert weights.format.name == "original DETR segmentation"
    assert not weights.left_out
    model = make_model("MODEL.DETR.HIDDEN_DIM", 128)
    WeightsAdapter(model.state_dict(), "segmentation.pth", NOTHING).adapt(weights, None, None)
    model.load_state_dict(dict(original), strict=True)
    theirs, ours = "detr.backbone.0.body.layer1.0.conv1.weight", "detr.backbone.0.backbone.res2.0.conv1.weight"
    assert torch.equal(weights.tensors[ours], original[theirs])


def test_files_of_the_old_wrapper_load(make_model):
    """Its files hold its criterion's buffer; with masks, the box model is one level deeper."""
    model = make_model()
    trained = {**model.state_dict(), "criterion.empty_weight": torch.ones(6)}
    weights = to_native({"model": trained, "iteration": 3})
    assert weights.left_out == ["criterion.empty_weight"]
    model.load_state_dict(weights.tensors, strict=True)

    masks = {name.replace("detr.", "detr.detr.", 1): x for name, x in model.state_dict().items()}
    masks |= {"detr.mask_head.lay1.weight": torch.zeros(1), "detr.bbox_attention.q_linear.weight": torch.zeros(1)}
    weights = to_native({"model": masks, "criterion.empty_weight": torch.ones(6)})
    added = {"detr.mask_head.lay1.weight", "detr.bbox_attention.q_linear.weight"}
    assert weights.tensors.keys() == model.state_dict().keys() | added
    assert not weights.left_out


def test_a_coco_head_is_mapped_for_80_classes_only(make_cfg, make_original):
    """92 rows become 81 only where the model has 80 classes."""
    checkpoint = {"model": make_original(make_cfg(), num_classes=91).state_dict()}
    for num_classes, rows in ((80, 81), (91, 92), (3, 92), (None, 92)):
        weights = to_native(checkpoint, num_classes)
        assert weights.tensors["detr.class_embed.weight"].shape[0] == rows
        assert (weights.class_names or [None])[0] == ("person" if rows == 81 else None)


def test_a_native_head_of_92_rows_is_not_one_of_coco_ids(make_model):
    state_dict = make_model("MODEL.DETR.NUM_CLASSES", 91).state_dict()
    assert to_native({"model": state_dict}, 80).tensors["detr.class_embed.weight"].shape[0] == 92


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model.decoder.layers.0.ca_qcontent_proj.weight", "class_labels_classifier.weight"], "Conditional DETR"),
        (["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"], "R-CNN"),
        (["backbone.bottom_up.res2.0.conv1.weight", "head.cls_score.weight"], "another Detectron2"),
        (["conv1_w", "res2_0_branch2a_w"], "Caffe2"),
        (["detr.detr.transformer.decoder.norm.weight", "detr.backbone.0.backbone.detr.res2.0.conv1.weight"], "garbled"),
        (["layers.0.weight", "layers.0.bias"], r"layers\.0\.weight, layers\.0\.bias"),
        ([], "holds nothing"),
    ],
)
def test_other_models_are_named(names, what):
    with pytest.raises(UserError, match=rf"my\.pth is .*{what}.*can be loaded: detr_d2, SMCA, original DETR"):
        recognize(names, "my.pth")


@pytest.mark.parametrize("kind", ["type1", "type2", "type3", "type4"])
def test_the_authors_smca_names_are_recognized(real_data, kind):
    """The names and shapes of a model that the authors' code built; it has 20 queries, 11 classes, 8 heads."""
    rows = np.load(real_data.parent / f"golden/smca/{kind}_smooth8.npz")["state_dict_names"]
    shapes = dict(str(x).split() for x in rows)
    weights = {name: torch.zeros([int(n) for n in shape.split("x")]) for name, shape in shapes.items()}
    weights["backbone.0.body.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    assert recognize(weights).name == "SMCA"
    architecture = infer_architecture(to_native(weights).tensors)
    found = {key.removeprefix("MODEL.DETR."): value for key, value in architecture.items()}
    assert found["TRANSFORMER"] == "SmcaTransformer"
    assert found["SMCA.DYNAMIC_SCALE"] == kind
    assert (found["NHEADS"], found["NUM_CLASSES"], found["NUM_OBJECT_QUERIES"]) == (8, 11, 20)


def test_no_model_fits_two_formats(make_model, make_cfg, make_original, segmentation_weights, torchvision_resnet):
    """SMCA is the exception: a DETR with more tensors."""
    models = [
        make_model().state_dict(),
        make_original(make_cfg()).state_dict(),
        segmentation_weights(),
        torchvision_resnet,
    ]
    for names in models:
        assert sum(x.matches(names) for x in (*FORMATS, *UNSUPPORTED)) == 1


def test_loading_a_model_leaves_its_own_names_alone(make_model, make_cfg, make_original):
    model = make_model()
    state_dict = model.state_dict()
    assert native_state_dict(state_dict, 5) is state_dict
    part = {"detr.class_embed.bias": torch.zeros(6)}
    assert native_state_dict(part, 5) is part
    assert find_format(part) is None
    original = make_original(make_cfg()).state_dict()
    assert native_state_dict(original, 5).keys() == state_dict.keys()
    model.load_state_dict(original, strict=True)
    assert torch.equal(model.state_dict()["detr.class_embed.bias"], original["class_embed.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x > 0, r"torch.bool values of shape \(64, 3, 7, 7\) for .*conv1"),
        (lambda x: x.to(torch.complex64), "torch.complex64 values"),
        (lambda x: x.sum(), r"torch.float32 values of shape \(\)"),
    ],
    ids=["bool", "complex", "scalar"],
)
def test_weights_are_arrays_of_floats(change, message):
    """Others would become weights of the model without a word."""
    weights = resnet18().state_dict()
    weights["conv1.weight"] = change(weights["conv1.weight"])
    with pytest.raises(UserError, match=rf"a.pth holds {message}"):
        to_native(weights, source="a.pth")
