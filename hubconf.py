"""Entry points for ``torch.hub.load``, named as the original's: ``torch.hub.load(REPOSITORY, "detr_resnet50")``.

Each returns this package's :class:`~detr_d2.modeling.meta_arch.Detr` in evaluation mode, on the CPU. Its input and
output are those of Detectron2's models: a list of dicts, one per image, with ``image`` (RGB, uint8, (3, H, W)); and
their ``instances``, of panoptic models their ``panoptic_seg`` too. No post-processor is needed. The original's entry
points return its bare network instead, whose input is normalized images. Requires Detectron2.
"""

from collections.abc import Callable
from functools import partial

from detectron2.modeling import build_model
from torch import Tensor

from detr_d2 import Detr, model_zoo
from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.modeling.postprocessing import PanopticRules, box_instances, panoptic_segmentation
from detr_d2.modeling.postprocessing.panoptic import Segmentation
from detr_d2.structures import Size

dependencies = ["torch", "torchvision", "detectron2", "scipy"]

# COCO's panoptic category ids from 0 to 90 are things.
_THING_IDS = 91


def detr_resnet50(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """Build DETR, ResNet-50: 42.0 AP on COCO val2017.

    Args:
        pretrained: True to load the published weights.
        num_classes: foreground classes. 91, as in the original, counts COCO's category ids, gaps included; with 80
            the published head is converted to COCO's contiguous classes. Others can't be pretrained.
        return_postprocessor: True to also return :func:`~detr_d2.modeling.postprocessing.box_instances`, which makes
            instances of the predictions of the network inside the model, ``model.detr``.

    Returns:
        The model, or the model and the post-processor.

    Raises:
        UserError: the weights can't be downloaded, or don't fit ``num_classes``.
    """
    return _box_model("detr-r50", pretrained, num_classes, return_postprocessor)


def detr_resnet50_dc5(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """Build DETR-DC5, ResNet-50: 43.3 AP on COCO val2017. Arguments as for detr_resnet50."""
    return _box_model("detr-r50-dc5", pretrained, num_classes, return_postprocessor)


def detr_resnet101(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """Build DETR, ResNet-101: 43.5 AP on COCO val2017. Arguments as for detr_resnet50."""
    return _box_model("detr-r101", pretrained, num_classes, return_postprocessor)


def detr_resnet101_dc5(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """Build DETR-DC5, ResNet-101: 44.9 AP on COCO val2017. Arguments as for detr_resnet50."""
    return _box_model("detr-r101-dc5", pretrained, num_classes, return_postprocessor)


def detr_resnet50_panoptic(
    pretrained: bool = False, num_classes: int = 250, threshold: float = 0.85, return_postprocessor: bool = False
):
    """Build panoptic DETR, ResNet-50: 43.4 PQ on COCO val2017.

    Args:
        pretrained: True to load the published weights.
        num_classes: foreground classes. 250, as in the original, counts COCO's panoptic category ids, gaps included:
            up to 90 they are things. With 133 the published head is converted to COCO's contiguous classes, 80 things,
            then stuff. Others can't be pretrained; as in the original, the first 91 of them are things.
        threshold: minimum probability of a query that becomes a segment.
        return_postprocessor: True to also return a function that makes segments of an image's logits by the rules of
            the model: ``f(class_logits, mask_logits, padded_size=…, image_size=…, output_size=…)``, with the
            (Q, K + 1) and (Q, h, w) logits of all queries. Sizes and result are those of
            :func:`~detr_d2.modeling.postprocessing.panoptic_segmentation`.

    Returns:
        The model, or the model and the post-processor.

    Raises:
        UserError: the weights can't be downloaded, or don't fit ``num_classes``.
    """
    return _panoptic_model("detr-r50-panoptic", pretrained, num_classes, threshold, return_postprocessor)


def detr_resnet50_dc5_panoptic(
    pretrained: bool = False, num_classes: int = 250, threshold: float = 0.85, return_postprocessor: bool = False
):
    """Build panoptic DETR-DC5, ResNet-50: 44.6 PQ on COCO val2017. Arguments as for detr_resnet50_panoptic."""
    return _panoptic_model("detr-r50-dc5-panoptic", pretrained, num_classes, threshold, return_postprocessor)


def detr_resnet101_panoptic(
    pretrained: bool = False, num_classes: int = 250, threshold: float = 0.85, return_postprocessor: bool = False
):
    """Build panoptic DETR, ResNet-101: 45.1 PQ on COCO val2017. Arguments as for detr_resnet50_panoptic."""
    return _panoptic_model("detr-r101-panoptic", pretrained, num_classes, threshold, return_postprocessor)


def _box_model(
    name: str, pretrained: bool, num_classes: int, return_postprocessor: bool
) -> Detr | tuple[Detr, Callable]:
    model = _model(name, pretrained, "MODEL.DETR.NUM_CLASSES", num_classes)
    return (model, box_instances) if return_postprocessor else model


def _panoptic_model(
    name: str, pretrained: bool, num_classes: int, threshold: float, return_postprocessor: bool
) -> Detr | tuple[Detr, Callable]:
    contiguous = num_classes == len(coco_panoptic_categories())
    model = _model(
        name,
        pretrained,
        *("MODEL.DETR.NUM_CLASSES", num_classes, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", float(threshold)),
        *("MODEL.DETR.PANOPTIC.NUM_THINGS", None if contiguous else min(num_classes, _THING_IDS)),
    )
    return (model, partial(_segment, rules=model.panoptic)) if return_postprocessor else model


def _segment(class_logits: Tensor, mask_logits: Tensor, *, rules: PanopticRules, **sizes: Size) -> Segmentation:
    selected = rules.select(class_logits)
    return panoptic_segmentation(selected, mask_logits[selected.queries], rules=rules, **sizes)


def _model(name: str, pretrained: bool, *options) -> Detr:
    cfg = model_zoo.get_config(name, trained=pretrained)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.DETR.FROZEN_WEIGHTS", "", *options])
    model = build_model(cfg)
    if pretrained:
        DetrCheckpointer(model, allow_new_head=False).load(cfg.MODEL.WEIGHTS)
    return model.eval()
