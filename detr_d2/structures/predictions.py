"""Results of a network: decoder states, predictions, and the inputs of masks."""

from typing import NamedTuple

from torch import Tensor

from detr_d2.structures.padded_batch import Size


class FeatureLevel(NamedTuple):
    """One level of a backbone's features."""

    tensor: Tensor
    """(B, C, h, w)"""
    valid_sizes: tuple[Size, ...]
    """Height and width in features of each image's valid part; see :class:`PaddedBatch`."""

    @property
    def is_valid_throughout(self) -> bool:
        """Whether every image's valid size is the size of the tensor."""
        return all(tuple(x) == tuple(self.tensor.shape[-2:]) for x in self.valid_sizes)

    def of_image(self, index: int) -> "FeatureLevel":
        """Return the valid part of one image, as a batch of one."""
        return FeatureLevel(crop(self.tensor, index, self.valid_sizes[index]), (self.valid_sizes[index],))


class ProjectedLevel(NamedTuple):
    """One of several feature levels that a transformer reads."""

    tensor: Tensor
    """(B, C, h, w) projected features."""
    pos: Tensor
    """(B or 1, C, h, w) position embedding."""
    padding_mask: Tensor | None
    """(B, h, w) bool, True where padded; None at all levels where nothing is padded at any."""


class Features(NamedTuple):
    """Image features for a transformer, and the finer levels for masks."""

    tensor: Tensor
    """(B, C, H, W) of the backbone's coarsest level."""
    padding_mask: Tensor | None
    """(B, H, W) bool, True where padded; None where nothing is."""
    image_sizes: Tensor
    """(B, 2) float32 width and height of the unpadded images, in features. On the host."""
    valid_sizes: tuple[Size, ...]
    """Height and width in features of each image's valid part; see :class:`PaddedBatch`."""
    finer: tuple[FeatureLevel, ...] = ()
    """The backbone's other levels, coarse to fine."""
    projected: tuple[ProjectedLevel, ...] = ()
    """The levels, fine to coarse, for a transformer of several."""


class Decoded(NamedTuple):
    """The output of a transformer."""

    hidden: Tensor
    """(L, B, Q, C) object queries after each of L decoder layers."""
    reference: Tensor | None = None
    """(B, Q, 2) x and y, before the sigmoid, that the center of a query's box is predicted relative to."""
    memory: Tensor | None = None
    """(B, C, H, W) output of the encoder."""


class Memory(NamedTuple):
    """The encoder's output, and where its features lie in the images."""

    tensor: Tensor
    """(B, C, H, W)"""
    padding_mask: Tensor | None
    """(B, H, W) bool, True where padded; None where nothing is."""
    image_sizes: Tensor
    """(B, 2) float32 width and height of the unpadded images, in features. On the host."""


class MaskInputs(NamedTuple):
    """Inputs of the masks of any query of B images."""

    hidden: Tensor
    """(B, Q, C) object queries after the last decoder layer."""
    source: FeatureLevel
    """(B, C, H, W) projected features of the coarsest level."""
    memory: Tensor
    """(B, C, H, W) output of the encoder."""
    padding_mask: Tensor | None
    """(B, H, W) bool, True where padded; None where nothing is."""
    finer: tuple[FeatureLevel, ...]
    """The backbone's finer levels, coarse to fine."""

    def of_image(self, index: int) -> "MaskInputs":
        """Return those of the valid part of one image, as a batch of one."""
        size = self.source.valid_sizes[index]
        return MaskInputs(
            self.hidden[index : index + 1],
            self.source.of_image(index),
            crop(self.memory, index, size),
            None if self.padding_mask is None else crop(self.padding_mask, index, size),
            tuple(x.of_image(index) for x in self.finer),
        )


class Output(NamedTuple):
    """Predictions after L decoder layers, the last one last, for B images with Q object queries each."""

    logits: Tensor
    """(L, B, Q, classes + 1); the last class is no-object."""
    boxes: Tensor
    """(L, B, Q, 4) center x, center y, width, height in [0, 1], relative to the unpadded image."""
    mask_inputs: MaskInputs | None = None
    """None without a mask head."""

    @property
    def num_images(self) -> int:
        """Number of images, B."""
        return self.logits.shape[1]


def crop(x: Tensor, index: int, size: Size) -> Tensor:
    """Return the top left corner, of ``size``, of one image of a batch, as a batch of one."""
    return x[index : index + 1, ..., : size[0], : size[1]]
