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
    Of a transformer of several levels, the map is the finest that its decoder attends to, and there are no weights of
    the encoder.
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
    levels = []

    def start(module: nn.Module, inputs: tuple, output: tuple) -> None:
        (batch,) = inputs
        record.encoder.clear()
        record.decoder.clear()
        record.image_sizes = [tuple(size) for size in batch.image_sizes]

    def keep_levels(module: nn.Module, inputs: tuple) -> None:
        features = inputs[0]
        # Of several levels, the finest that the decoder attends to.
        levels[:] = features.projected[1:] or (features,)
        record.size = tuple(levels[0].tensor.shape[-2:])
        record.stride = network.input_proj.strides[1] if network.is_multi_scale else network.backbone[0].stride
        record.padding_mask = levels[0].padding_mask

    def keep_encoder(module: MultiheadAttention, inputs: tuple, output: Tensor) -> None:
        query, *others = inputs
        if points is not None:
            rows = record.features_at(points).to(query.device)
            query = query.gather(1, rows[..., None].expand(-1, -1, query.shape[-1]))
        record.encoder.append(module.weights(query, *others).detach())

    def keep_decoder(module: MultiheadAttention, inputs: tuple, output: Tensor) -> None:
        weights = module.weights(*inputs).detach()
        if network.is_multi_scale:
            weights = _on_finest(weights, [tuple(x.tensor.shape[-2:]) for x in levels], record.padding_mask)
        record.decoder.append(weights)

    # Handles of hooks are context managers that remove the hook.
    with ExitStack() as hooks:
        hooks.enter_context(network.backbone.register_forward_hook(start))
        hooks.enter_context(network.transformer.register_forward_pre_hook(keep_levels))
        if not network.is_multi_scale and (points is None or points):
            for layer in network.transformer.encoder.layers:
                hooks.enter_context(layer.self_attn.register_forward_hook(keep_encoder))
        for layer in network.transformer.decoder.layers:
            hooks.enter_context(layer.multihead_attn.register_forward_hook(keep_decoder))
        yield record


def _on_finest(weights: Tensor, sizes: Sequence[tuple[int, int]], padding_mask: Tensor | None) -> Tensor:
    """Sum the (B, heads, Q, S) weights over levels on the map of the finest, which has a share of S twice.

    The weight of a coarser feature is spread over the valid features of the finest level that it covers.
    """
    height, width = sizes[0]
    valid = weights.new_ones(1, height, width) if padding_mask is None else (~padding_mask).to(weights.dtype)
    finest, *coarser = weights.split([h * w for h, w in (sizes[0], *sizes)], dim=-1)
    total = finest.clone()
    for i, (level, (_, columns)) in enumerate(zip(coarser, sizes, strict=True)):
        y, x = (torch.arange(n, device=weights.device) // 2**i for n in (height, width))
        covering = (y[:, None] * columns + x).flatten()
        counts = valid.new_zeros(len(valid), level.shape[-1]).index_add(1, covering, valid.flatten(1))
        total += (level / counts.clamp(min=1)[:, None, None])[..., covering]
    return total * valid.flatten(1)[:, None, None]


def _layer(layers: list[Tensor], index: int, part: str) -> Tensor:
    if not -len(layers) <= index < len(layers):
        raise UserError(f"There is no layer {index} in the {part}: {len(layers)} of its layers were recorded.")
    return layers[index]
