"""ResNets: torchvision's names, which timm has too, those of the transformers library, and Detectron2's: ours."""

from detr_d2.checkpoint.key_maps.base import CheckpointFormat, Rules

BACKBONE = "detr.backbone.0.backbone."
"""Where the backbone is in a state dict of our model."""

_NORM = r"(weight|bias|running_mean|running_var)"


def torchvision_rules(prefix: str = "") -> Rules:
    """Rules for a torchvision ResNet whose names start with the pattern ``prefix``."""
    stages = [
        rule
        for stage in (1, 2, 3, 4)
        for rule in (
            (rf"layer{stage}\.(\d+)\.conv([123])\.weight", rf"res{stage + 1}.\1.conv\2.weight"),
            (rf"layer{stage}\.(\d+)\.bn([123])\.{_NORM}", rf"res{stage + 1}.\1.conv\2.norm.\3"),
            (rf"layer{stage}\.(\d+)\.downsample\.0\.weight", rf"res{stage + 1}.\1.shortcut.weight"),
            (rf"layer{stage}\.(\d+)\.downsample\.1\.{_NORM}", rf"res{stage + 1}.\1.shortcut.norm.\2"),
        )
    ]
    stem = [(r"conv1\.weight", "stem.conv1.weight"), (rf"bn1\.{_NORM}", r"stem.conv1.norm.\1")]
    left_out = [(rf"{prefix}{name}", None) for name in (r".*\.num_batches_tracked", r"fc\.(weight|bias)")]
    return (*((prefix + pattern, BACKBONE + name) for pattern, name in stem + stages), *left_out)


def huggingface_resnet_rules(prefix: str) -> Rules:
    """Rules for a ResNet of the transformers library whose names start with the pattern ``prefix``."""
    embedder = rf"{prefix}embedder\.embedder\."
    rules = [
        (rf"{embedder}convolution\.weight", f"{BACKBONE}stem.conv1.weight"),
        (rf"{embedder}normalization\.{_NORM}", rf"{BACKBONE}stem.conv1.norm.\1"),
    ]
    for stage in (0, 1, 2, 3):
        block = rf"{prefix}encoder\.stages\.{stage}\.layers\.(\d+)\."
        ours = rf"{BACKBONE}res{stage + 2}.\1."
        parts = [(rf"layer\.{i}", f"conv{i + 1}") for i in (0, 1, 2)] + [("shortcut", "shortcut")]
        for theirs, name in parts:
            rules.append((rf"{block}{theirs}\.convolution\.weight", f"{ours}{name}.weight"))
            rules.append((rf"{block}{theirs}\.normalization\.{_NORM}", rf"{ours}{name}.norm.\2"))
    return tuple(rules)


TORCHVISION = CheckpointFormat(
    name="torchvision ResNet",
    signature=(r"conv1\.weight", r"bn1\.running_var", r"layer1\.0\.conv1\.weight"),
    rules=torchvision_rules(),
    backbone_only=True,
)

DETECTRON2 = CheckpointFormat(
    name="Detectron2 ResNet",
    signature=(r"stem\.conv1\.weight", r"res2\.0\.conv1\.weight"),
    rules=(
        (r".*\.num_batches_tracked", None),
        # The classifier of ImageNet.
        (r"(stem\.fc|fc|linear)\.(weight|bias)", None),
        (r"((stem|res[2-5])\..+)", BACKBONE + r"\1"),
    ),
    backbone_only=True,
)
