"""Access to the optional library timm and to what it says about its models."""

import difflib
from types import ModuleType

from detr_d2.utils.errors import UserError


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation (RGB, on a scale of 255) of the training images of timm's weights ``name``.

    Raises:
        UserError: timm is missing or has no such model.
    """
    timm = import_timm()
    found = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.split(".")[0]) else None
    if found is None:
        raise UserError(unknown_model(name))
    mean, std = (tuple(round(255 * x, 4) for x in values) for values in (found.mean, found.std))
    return mean, std


def import_timm() -> ModuleType:
    """Return the module timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as e:
        raise UserError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm, which is not installed: pip install timm "
            "(or, with this package, pip install 'detr_d2[timm]')."
        ) from e
    return timm


def unknown_model(name: str) -> str:
    """Return the message about a model that timm does not have, with names like it."""
    close = difflib.get_close_matches(name.split(".")[0], import_timm().list_models(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has them all."
    return f"MODEL.TIMM.NAME is {name!r}, which this version of timm does not have: {hint}"
