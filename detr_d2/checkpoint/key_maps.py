"""Names of tensors in other projects' checkpoints, and rules that translate them to native names and back."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

BACKBONE = "detr.backbone.0.backbone."
"""Prefix of the backbone's tensors in the native format."""

Rules = tuple[tuple[str, str | None], ...]
"""(foreign name, native name), with the same wildcards in both. None: the model has no such tensor."""

_WILDCARDS = {
    "n": r"\d+",
    "i": "[123]",
    "qkv": "[qkv]",
    "coder": "encoder|decoder",
    "wb": "weight|bias",
    "norm": "weight|bias|running_mean|running_var",
    "stage": "stem|res[2-5]",
    "module": r"transformer|class_embed|bbox_embed|query_embed|input_proj|backbone\.1",
    "mask_module": "bbox_attention|mask_head",
    "rest": ".+",
}
"""Regular expressions by wildcard: ``<NAME>`` in a rule."""


@dataclass(frozen=True)
class CheckpointFormat:
    """Format of a checkpoint: names of tensors that identify it, and rules that translate them to native names."""

    name: str  # Display name, used in messages.
    signature: tuple[str, ...]  # Regular expressions, each of which fully matches a name in a file of this format.
    # In either direction, the first rule that matches a name counts. A foreign name that none matches is kept:
    # comparing with the model finds it.
    rules: Rules = ()
    backbone_only: bool = False
    has_coco_ids: bool = False  # True if rows of the class head may be COCO's category ids, not contiguous classes.
    splits_in_proj: bool = False  # True if an attention's query, key and value projections are three tensors, not one.
    # Config keys and values of every model of the format that no tensor reveals.
    implies: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(pattern, name) for name in names) for pattern in self.signature)

    def native_name(self, name: str) -> str | None:
        """Return the native name of a tensor, None if the model has no such tensor."""
        return _rename(name, self.rules, default=name)

    def foreign_name(self, name: str) -> str | None:
        """Return the format's name of a native tensor, None if it has none."""
        return _rename(name, self._rules_to_foreign, default=None)

    @functools.cached_property
    def _rules_to_foreign(self) -> Rules:
        return tuple((native, foreign) for foreign, native in self.rules if native is not None)


@functools.cache
def _pattern(name: str) -> re.Pattern:
    return re.compile(re.sub("<(.+?)>", lambda x: f"(?P<{x[1]}>{_WILDCARDS[x[1]]})", re.escape(name)))


def _rename(name: str, rules: Rules, default: str | None) -> str | None:
    for source, target in rules:
        if match := _pattern(source).fullmatch(name):
            return None if target is None else re.sub("<(.+?)>", lambda x: match[x[1]], target)
    return default


def with_prefixes(foreign: str, native: str, rules: Rules) -> Rules:
    """Add a prefix to both names of every rule."""
    return tuple((foreign + a, None if b is None else native + b) for a, b in rules)


def torchvision_rules(prefix: str = "") -> Rules:
    """Return the rules of a torchvision or timm ResNet whose names start with ``prefix``."""
    rules = [("conv1.weight", "stem.conv1.weight"), ("bn1.<norm>", "stem.conv1.norm.<norm>")]
    for i in (1, 2, 3, 4):
        foreign, native = f"layer{i}.<n>", f"res{i + 1}.<n>"
        rules += [
            (f"{foreign}.conv<i>.weight", f"{native}.conv<i>.weight"),
            (f"{foreign}.bn<i>.<norm>", f"{native}.conv<i>.norm.<norm>"),
            (f"{foreign}.downsample.0.weight", f"{native}.shortcut.weight"),
            (f"{foreign}.downsample.1.<norm>", f"{native}.shortcut.norm.<norm>"),
        ]
    return with_prefixes(prefix, BACKBONE, (*rules, ("<rest>.num_batches_tracked", None), ("fc.<wb>", None)))


def _original_rules(prefix: str = "") -> Rules:
    return ((f"{prefix}<module>.<rest>", "detr.<module>.<rest>"), *torchvision_rules(f"{prefix}backbone.0.body."))


TORCHVISION_RESNET = CheckpointFormat(
    name="torchvision ResNet",
    signature=(r"conv1\.weight", r"bn1\.running_var", r"layer1\.0\.conv1\.weight"),
    rules=torchvision_rules(),
    backbone_only=True,
)

DETECTRON2_RESNET = CheckpointFormat(
    name="Detectron2 ResNet",
    signature=(r"stem\.conv1\.weight", r"res2\.0\.conv1\.weight"),
    rules=(
        ("<rest>.num_batches_tracked", None),
        # The classifier of ImageNet.
        *((f"{name}.<wb>", None) for name in ("stem.fc", "fc", "linear")),
        ("<stage>.<rest>", f"{BACKBONE}<stage>.<rest>"),
    ),
    backbone_only=True,
)

# Native names are those that the original project's Detectron2 wrapper and its converter wrote. The buffer of the
# wrapper's criterion is made from the config here.
_WRAPPER_BUFFER = ("criterion.empty_weight", None)

NATIVE = CheckpointFormat(
    name="detr_d2",
    signature=(r"detr\.transformer\.decoder\..+", r"detr\.backbone\.0\.backbone\.(?!detr\.).+"),
    rules=(_WRAPPER_BUFFER,),
)

# In segmentation models, the box model is a module of its own, so its names have one more prefix.
WRAPPER_SEGMENTATION = CheckpointFormat(
    name="segmentation model of the original's Detectron2 wrapper",
    signature=(r"detr\.detr\.transformer\.decoder\..+", r"detr\.detr\.backbone\.0\.backbone\..+"),
    rules=(_WRAPPER_BUFFER, ("detr.detr.<rest>", "detr.<rest>")),
)

ORIGINAL = CheckpointFormat(
    name="original DETR",
    signature=(r"transformer\.decoder\..+", r"backbone\.0\.body\..+"),
    rules=_original_rules(),
    has_coco_ids=True,
)
"""Box models of github.com/facebookresearch/detr."""

ORIGINAL_SEGMENTATION = replace(
    ORIGINAL,
    name="original DETR segmentation",
    signature=tuple(rf"detr\.{x}" for x in ORIGINAL.signature),
    rules=(*_original_rules("detr."), ("<mask_module>.<rest>", "detr.<mask_module>.<rest>")),
)

SMCA = replace(
    ORIGINAL,
    name="SMCA",
    signature=(*ORIGINAL.signature, r"transformer\.decoder\.layers\.\d+\.point2\..+"),
    implies={"MODEL.DETR.CLASS_LOSS": "focal"},
)

UNSUPPORTED = (
    CheckpointFormat("a Deformable DETR", (r".*\.sampling_offsets\.weight",)),
    CheckpointFormat("a Conditional DETR", (r".*\.ca_qcontent_proj\.weight",)),
    CheckpointFormat("a Detectron2 R-CNN", (r"(roi_heads|proposal_generator)\..+",)),
    CheckpointFormat("another Detectron2 detection model", (r"backbone\.bottom_up\..+",)),
    CheckpointFormat("a Caffe2 ResNet (MSRA or Detectron1 weights)", (r"(res|blob_res).*_branch\d\w_.+",)),
    CheckpointFormat(
        "a segmentation checkpoint that the original's d2/converter.py garbled (convert the original file instead)",
        (r"detr\.backbone\.0\.backbone\.(detr|stem\.detr)\..+",),
    ),
)
"""Models that are recognized only to name them in an error."""
