"""Models that the authors of DETR published."""

from typing import NamedTuple

from detr_d2.utils.errors import UserError


class PublishedModel(NamedTuple):
    """A checkpoint of the original DETR, with its results on COCO val2017, in percent, as its authors publish them."""

    name: str
    file: str
    config: str  # Name of the config file, in ``configs/``, that it fits.
    box_ap: float
    mask_ap: float | None = None
    pq: float | None = None  # Panoptic quality.

    @property
    def url(self) -> str:
        return f"https://dl.fbaipublicfiles.com/detr/{self.file}"


_R50, _R50_DC5, _R101, _R101_DC5 = (
    f"detr_256_6_6_torchvision{variant}.yaml" for variant in ("", "_dc5", "_r101", "_r101_dc5")
)
_PANOPTIC_R50, _PANOPTIC_R50_DC5, _PANOPTIC_R101 = (
    f"detr_segm_256_6_6_torchvision_panoptic{variant}.yaml" for variant in ("", "_dc5", "_r101")
)

PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel("detr-r50", "detr-r50-e632da11.pth", _R50, 42.0),
        PublishedModel("detr-r50-dc5", "detr-r50-dc5-f0fb7ef5.pth", _R50_DC5, 43.3),
        PublishedModel("detr-r101", "detr-r101-2c7b67e5.pth", _R101, 43.5),
        PublishedModel("detr-r101-dc5", "detr-r101-dc5-a2e86def.pth", _R101_DC5, 44.9),
        PublishedModel("detr-r50-panoptic", "detr-r50-panoptic-00ce5173.pth", _PANOPTIC_R50, 38.8, 31.1, 43.4),
        PublishedModel(
            "detr-r50-dc5-panoptic", "detr-r50-dc5-panoptic-da08f1b1.pth", _PANOPTIC_R50_DC5, 40.2, 31.9, 44.6
        ),
        PublishedModel("detr-r101-panoptic", "detr-r101-panoptic-40021d53.pth", _PANOPTIC_R101, 40.1, 33.0, 45.1),
    )
}


def published_model(name: str) -> PublishedModel:
    """Return the published model of this name. For an unknown name, a UserError lists all."""
    if name not in PUBLISHED:
        raise UserError(f"There is no published model {name!r}: choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
