"""Our own names, which are those that the original project's Detectron2 wrapper and its converter wrote."""

from detr_d2.checkpoint.key_maps.base import CheckpointFormat

NATIVE = CheckpointFormat(
    name="detr_d2",
    signature=(r"detr\.transformer\.decoder\..+", r"detr\.backbone\.0\.backbone\.(?!detr\.).+"),
    # A buffer of the wrapper's criterion, which ours makes from the config.
    rules=((r"criterion\.empty_weight", None),),
)

WRAPPER_SEGMENTATION = CheckpointFormat(
    name="segmentation model of the original's Detectron2 wrapper",
    signature=(r"detr\.detr\.transformer\.decoder\..+", r"detr\.detr\.backbone\.0\.backbone\..+"),
    rules=(
        (r"criterion\.empty_weight", None),
        # The box model sat inside the segmentation model.
        (r"detr\.(detr\..+)", r"\1"),
    ),
)
