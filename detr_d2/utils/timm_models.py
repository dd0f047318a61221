"""Access to the optional library timm."""

from types import ModuleType

from detr_d2.utils.errors import UserError, did_you_mean


def import_timm(model: str | None = None) -> ModuleType:
    """Return the module timm. If it is not installed, or has no ``model`` of this name, raise a UserError."""
    try:
        import timm
    except ImportError as e:
        raise UserError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm, which is not installed: pip install timm "
            "(or, with this package, pip install 'detr_d2[timm]')."
        ) from e
    if model is not None and not timm.is_model(model.split(".")[0]):
        hint = did_you_mean(model.split(".")[0], timm.list_models(), "timm.list_models() has them all.")
        raise UserError(f"MODEL.TIMM.NAME is {model!r}, which this version of timm does not have. {hint}")
    return timm
