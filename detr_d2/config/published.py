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


_MODELS = (
    ("detr-r50", "e632da11", "detr_256_6_6_torchvision", 42.0),
    ("detr-r50-dc5", "f0fb7ef5", "detr_256_6_6_torchvision_dc5", 43.3),
    ("detr-r101", "2c7b67e5", "detr_256_6_6_torchvision_r101", 43.5),
    ("detr-r101-dc5", "a2e86def", "detr_256_6_6_torchvision_r101_dc5", 44.9),
    ("detr-r50-panoptic", "00ce5173", "detr_segm_256_6_6_torchvision_panoptic", 38.8, 31.1, 43.4),
    ("detr-r50-dc5-panoptic", "da08f1b1", "detr_segm_256_6_6_torchvision_panoptic_dc5", 40.2, 31.9, 44.6),
    ("detr-r101-panoptic", "40021d53", "detr_segm_256_6_6_torchvision_panoptic_r101", 40.1, 33.0, 45.1),
)
PUBLISHED = {
    name: PublishedModel(name, f"{name}-{digest}.pth", f"{config}.yaml", *results)
    for name, digest, config, *results in _MODELS
}


def published_model(name: str) -> PublishedModel:
    """Return the published model of this name. For an unknown name, a UserError lists all."""
    if name not in PUBLISHED:
        raise UserError(f"There is no published model {name!r}: choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
