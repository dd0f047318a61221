"""Entry points for ``torch.hub.load``, named as the original's: ``torch.hub.load(REPOSITORY, "detr_resnet50")``.

Each returns this package's :class:`~detr_d2.meta_arch.Detr` in evaluation mode, on the CPU. It takes what Detectron2's
models take, a list of dicts with an ``image`` each (RGB, uint8, (3, H, W)), and returns their ``instances``: no
post-processor is needed. The original's entry points return its bare network instead, which takes normalised images.
Needs Detectron2.
"""

from collections.abc import Callable

from detectron2.modeling import build_model
from torch import nn

from detr_d2 import Detr, UserError, model_zoo
from detr_d2.checkpoint import DetrCheckpointer
from detr_d2.postprocess import box_instances

dependencies = ["torch", "torchvision", "detectron2", "scipy"]


def detr_resnet50(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """DETR, ResNet-50: 42.0 AP on COCO val2017.

    Args:
        pretrained: load the published weights.
        num_classes: foreground classes. 91, as in the original, counts COCO's category ids, gaps included; with 80
            the published head is brought to COCO's contiguous classes. Others can't be pretrained.
        return_postprocessor: also return :func:`detr_d2.postprocess.box_instances`, which makes instances of what the
            network inside the model, ``model.detr``, predicts.

    Returns:
        The model, or the model and the post-processor.

    Raises:
        UserError: the weights can't be downloaded, or don't fit ``num_classes``.
    """
    return _box_model("detr-r50", pretrained, num_classes, return_postprocessor)


def detr_resnet50_dc5(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """DETR-DC5, ResNet-50: 43.3 AP on COCO val2017. Arguments as those of detr_resnet50."""
    return _box_model("detr-r50-dc5", pretrained, num_classes, return_postprocessor)


def detr_resnet101(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """DETR, ResNet-101: 43.5 AP on COCO val2017. Arguments as those of detr_resnet50."""
    return _box_model("detr-r101", pretrained, num_classes, return_postprocessor)


def detr_resnet101_dc5(pretrained: bool = False, num_classes: int = 91, return_postprocessor: bool = False):
    """DETR-DC5, ResNet-101: 44.9 AP on COCO val2017. Arguments as those of detr_resnet50."""
    return _box_model("detr-r101-dc5", pretrained, num_classes, return_postprocessor)


def detr_resnet50_panoptic(*args, **kwargs):
    """Not available yet: raises a UserError that says what of the published model can be loaded."""
    _refuse("detr-r50-panoptic")


def detr_resnet50_dc5_panoptic(*args, **kwargs):
    """Not available yet: raises a UserError that says what of the published model can be loaded."""
    _refuse("detr-r50-dc5-panoptic")


def detr_resnet101_panoptic(*args, **kwargs):
    """Not available yet: raises a UserError that says what of the published model can be loaded."""
    _refuse("detr-r101-panoptic")


def _box_model(
    name: str, pretrained: bool, num_classes: int, return_postprocessor: bool
) -> Detr | tuple[nn.Module, Callable]:
    cfg = model_zoo.get_config(name, trained=pretrained)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    model = build_model(cfg)
    if pretrained:
        DetrCheckpointer(model, allow_new_head=False).load(cfg.MODEL.WEIGHTS)
    model.eval()
    return (model, box_instances) if return_postprocessor else model


def _refuse(name: str) -> None:
    raise UserError(model_zoo.explain_panoptic(model_zoo.PUBLISHED[name]))
