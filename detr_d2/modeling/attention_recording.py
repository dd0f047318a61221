"""Attention weights of a forward pass, computed only on request."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from detr_d2.modeling.attention import MultiheadAttention
from detr_d2.utils.errors import UserError

Point = tuple[float, float]
"""x and y relative to an unpadded image, in [0, 1]."""


@dataclass
class AttentionRecord:
    """The attention weights of the last forward pass, on the model's device.

    The S features are those of an (H, W) map, row by row. Weights sum to 1 over the features; padded ones have none.
    """

    # Weights of each layer, (B, heads, S, S) from every feature (dimension 2) to every feature; (B, heads, P, S) from P
    # points.
    encoder: list[Tensor] = field(default_factory=list)
    # Weights of each layer, (B, heads, Q, S) from the object queries to the features.
    decoder: list[Tensor] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)  # H and W.
    stride: int = 0  # Distance of neighboring features, in pixels of the image that the network sees.
    # Height and width in pixels of each of the B images that the network sees, unpadded.
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    padding_mask: Tensor | None = None  # (B, H, W) bool, True where padded; None where nothing is.
    encoder_points: Sequence[Point] | None = ()  # The points of the rows of ``encoder``; None: every feature.

    def cross_attention(self, index: int = 0, layer: int = -1) -> Tensor:
        """Return the weights of the object queries of image number ``index``, (heads, Q, H, W).

        If there is no such decoder layer, raise a UserError.
        """
        return _layer(self.decoder, layer, "decoder")[index].unflatten(-1, self.size)

    def self_attention(self, point: Point, index: int = 0, layer: int = -1) -> Tensor:
        """Return the weights of the feature at ``point`` of image number ``index``, (heads, H, W).

        If there is no such encoder layer, or the point was not recorded, raise a UserError.
        """
        weights = _layer(self.encoder, layer, "encoder")[index]
        if self.encoder_points is None:
            row = int(self.features_at([point])[index, 0])
        elif point in self.encoder_points:
            row = list(self.encoder_points).index(point)
        else:
            raise UserError(f"The encoder's attention from {point} was not recorded, only from {self.encoder_points}.")
        return weights[:, row].unflatten(-1, self.size)

    def features_at(self, points: Sequence[Point]) -> Tensor:
        """Return (B, P) int64: the features, of S, that contain the points."""
        relative = torch.tensor(points, dtype=torch.float64).clamp(0, 1)
        sizes = torch.tensor([(width, height) for height, width in self.image_sizes], dtype=torch.float64)
        # A point on the right or lower edge belongs to the last feature of the image, not to the padding.
        pixels = torch.minimum(relative * sizes[:, None], sizes[:, None] - 1)
        column, row = (pixels / self.stride).long().unbind(-1)
        height, width = self.size
        return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


@contextmanager
def record_attention(model: nn.Module, encoder_points: Sequence[Point] | None = ()) -> Iterator[AttentionRecord]:
    """Record the attention weights of the forward passes of a Detr within the block.

    The results do not change. Every forward pass replaces the record, which stays valid after the block::

        with record_attention(model) as record, torch.no_grad():
            model(batched_inputs)
        record.cross_attention()  # of the first image, in the last decoder layer

    Args:
        model: a :class:`~detr_d2.modeling.meta_arch.Detr`, of any transformer.
        encoder_points: the points of every image whose self-attention in the encoder is kept. None: every feature,
            which takes S² numbers per layer, head and image.
    """
    points = None if encoder_points is None else [(float(x), float(y)) for x, y in encoder_points]
    record = AttentionRecord(encoder_points=points)
    network = model.detr

    def start(module: nn.Module, inputs: tuple, output: tuple) -> None:
        (batch,), (features, _) = inputs, output
        record.encoder.clear()
        record.decoder.clear()
        record.size = tuple(features.tensor.shape[-2:])
        record.stride = module[0].stride
        record.image_sizes = [tuple(size) for size in batch.image_sizes]
        record.padding_mask = features.padding_mask

    def keep_encoder(module: MultiheadAttention, inputs: tuple, output: Tensor) -> None:
        query, *others = inputs
        if points is not None:
            rows = record.features_at(points).to(query.device)
            query = query.gather(1, rows[..., None].expand(-1, -1, query.shape[-1]))
        record.encoder.append(module.weights(query, *others).detach())

    def keep_decoder(module: MultiheadAttention, inputs: tuple, output: Tensor) -> None:
        record.decoder.append(module.weights(*inputs).detach())

    # Handles of hooks are context managers that remove the hook.
    with ExitStack() as hooks:
        hooks.enter_context(network.backbone.register_forward_hook(start))
        if points is None or points:
            for layer in network.transformer.encoder.layers:
                hooks.enter_context(layer.self_attn.register_forward_hook(keep_encoder))
        for layer in network.transformer.decoder.layers:
            hooks.enter_context(layer.multihead_attn.register_forward_hook(keep_decoder))
        yield record


def _layer(layers: list[Tensor], index: int, part: str) -> Tensor:
    if not -len(layers) <= index < len(layers):
        raise UserError(f"There is no layer {index} in the {part}: {len(layers)} of its layers were recorded.")
    return layers[index]
