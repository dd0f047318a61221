"""SMCA over several feature levels (arXiv 2101.07448), with an encoder of convolutions."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from detr_d2.modeling.attention import attention_weights
from detr_d2.modeling.backbone import BackboneWithPosition
from detr_d2.modeling.multiscale_encoder import MultiScaleEncoderLayer, Pyramid, flatten, split
from detr_d2.modeling.position_encoding import feature_grid
from detr_d2.modeling.projection import PyramidProjection
from detr_d2.modeling.smca import SmcaDecoderLayer, SmcaTransformer, SpatialAttention, SpatialBias, with_given_centers
from detr_d2.modeling.transformer import DETR_TRANSFORMER_REGISTRY
from detr_d2.structures import Decoded, Features, ProjectedLevel, Queries

_MAX_BACKBONE_LEVELS = 3


class MultiScaleAttention(SpatialAttention):
    """Attention to each of L levels by itself; the levels are averaged with shares that depend on the query.

    A Gaussian of a level is a bias of that level's logits alone, as factors where those are exact.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding_masks: Sequence[Tensor | None],
        biases: Sequence[SpatialBias],
        shares: Tensor,
    ) -> Tensor:
        """Return the queries' mix of the values, (B, Q, C).

        Args:
            query: (B, Q, C) queries.
            key, value: (B, S, C) keys and values, level after level.
            padding_masks: (B, s) bool for each level, True where padded; None where nothing is.
            biases: the Gaussians of each level.
            shares: (B, L, 1, Q, 1) shares of the levels, which sum to 1.
        """
        levels = self._levels(query, key, value, padding_masks, biases)
        return self.mix(sum(share * self.average(*x) for share, x in zip(shares.unbind(1), levels, strict=True)))

    def weights(self, *inputs) -> Tensor:
        """Return the weights of ``forward(*inputs)`` without dropout: (B, heads, Q, S) float32, level after level."""
        *operands, shares = inputs
        levels = self._levels(*operands)
        weights = [
            share * attention_weights(q.float(), k.float(), mask, scale)
            for share, (q, k, _, mask, scale) in zip(shares.unbind(1), levels, strict=True)
        ]
        return torch.cat(weights, dim=-1)

    def _levels(self, query: Tensor, key: Tensor, value: Tensor, padding_masks: Sequence, biases: Sequence) -> list:
        """Return the arguments of :meth:`average` for each level."""
        q, k, v = self.project(query, key, value)
        sizes = [bias.grid.shape[0] for bias in biases]
        levels = zip(split(k, sizes, dim=2), split(v, sizes, dim=2), padding_masks, biases, strict=True)
        return [self.modulated(q, *level) for level in levels]


class MultiScaleDecoderLayer(SmcaDecoderLayer):
    """A decoder layer of SMCA that attends to several levels; ``sizes`` are its parent's, with the levels last."""

    cross_attention = MultiScaleAttention

    def __init__(self, hidden_dim: int, *sizes, num_levels: int):
        super().__init__(hidden_dim, *sizes, num_levels=num_levels)
        self.level_share = nn.Linear(hidden_dim, num_levels)

    def predict(self, with_pos: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Predict where to attend, as :meth:`SmcaDecoderLayer.locate` does, at each of L levels.

        Returns:
            (B, L, heads, Q, 2) offsets measured in features of the level; (B, L, heads, Q, 1 to 3) scales of the
            Gaussian, if learned; from the first layer (B, Q, 2) reference points before the sigmoid; (B, L, 1, Q, 1)
            shares of the levels.
        """
        offsets, scales, reference = super().predict(with_pos)
        levels = (self.level_share.out_features, -1)
        shares = self.level_share(with_pos).softmax(-1).transpose(1, 2)[:, :, None, :, None]
        scales = None if scales is None else scales.unflatten(1, levels)
        return offsets.unflatten(1, levels), scales, reference, shares

    def float32_layers(self) -> list[nn.Module]:
        return [*super().float32_layers(), self.level_share]

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_with_pos: Tensor,
        queries: Queries,
        padding_masks: Sequence[Tensor | None],
        biases: Sequence[SpatialBias],
        shares: Tensor,
    ) -> Tensor:
        """Update the content of the object queries; see :class:`MultiScaleAttention`."""

        def attend_to_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x + queries.pos, memory_with_pos, memory, padding_masks, biases, shares)

        return self.run(tgt, queries, attend_to_memory)


@DETR_TRANSFORMER_REGISTRY.register()
class MultiScaleSmcaTransformer(SmcaTransformer):
    """SMCA over L feature levels: an encoder of convolutions, and a decoder that attends to every level.

    Args:
        num_levels: L, 2 or more: levels of the backbone, and one of twice the coarsest stride.
        shared_cross_level: True to share the encoder's convolutions between levels among all pairs of levels.
        pointwise: True for convolutions of one feature around the others of the encoder.
        smca: arguments of :class:`SmcaTransformer`.
    """

    @configurable
    def __init__(self, *, num_levels: int = 4, shared_cross_level: bool = True, pointwise: bool = True, **smca):
        # The parent's constructor builds the layers, which read these.
        self.num_levels = num_levels
        self.encoder_options = (num_levels, shared_cross_level, pointwise)
        super().__init__(**smca)
        for layer in self.encoder.layers:
            layer.reset_convolutions()
        self.level_embed = nn.Parameter(torch.empty(num_levels, self.hidden_dim).normal_())
        self.downsample = nn.Conv2d(self.hidden_dim, self.hidden_dim, kernel_size=3, stride=2, padding=1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        is_timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
        levels = cfg.MODEL.TIMM.OUT_INDICES if is_timm else cfg.MODEL.RESNETS.OUT_FEATURES
        return {
            **SmcaTransformer.from_config(cfg),
            "num_levels": min(len(levels), _MAX_BACKBONE_LEVELS) + 1,
            "shared_cross_level": cfg.MODEL.DETR.SMCA.SHARED_CROSS_LEVEL,
            "pointwise": cfg.MODEL.DETR.SMCA.POINTWISE,
        }

    def build_projection(self, backbone: BackboneWithPosition) -> PyramidProjection:
        """Build the projection of the levels that the transformer reads."""
        return PyramidProjection(backbone, self.hidden_dim, self.num_levels)

    def encoder_layer(self, hidden_dim: int, nheads: int, *sizes) -> MultiScaleEncoderLayer:
        return MultiScaleEncoderLayer(hidden_dim, *sizes, *self.encoder_options)

    def decoder_layer(self, index: int, *sizes) -> MultiScaleDecoderLayer:
        sizes = (*sizes, self.scales_per_head, self.smooth, index == 0)
        return MultiScaleDecoderLayer(*sizes, num_levels=self.num_levels)

    def forward(self, features: Features, pos: Tensor, queries: Queries, *, all_layers: bool) -> Decoded:
        """Run encoder and decoder over ``features.projected``, as :meth:`DetrTransformer.forward` does over one level.

        The memory that is returned is that of the backbone's coarsest level; ``pos`` is not used.
        """
        levels = features.projected
        pyramid = Pyramid.of(levels)
        embeddings = self.level_embed[..., None, None].to(levels[0].pos.dtype)
        pos = flatten([x.pos + embedding for x, embedding in zip(levels, embeddings, strict=True)])
        encoded = self.encoder(flatten([x.tensor for x in levels]), pos, pyramid)
        maps = pyramid.maps(encoded)
        _, *pos_of_levels = pyramid.split(pos)
        # The finest level is brought to the next one's stride, and shares its positions and padding.
        memory = flatten([self.downsample(maps[0]), *maps[1:]])
        pos = torch.cat((pos_of_levels[0], *pos_of_levels), dim=1)
        return self._decode(memory, pos, queries, features, all_layers)._replace(memory=maps[-2])

    def _decode(self, memory: Tensor, pos: Tensor, queries: Queries, features: Features, all_layers: bool) -> Decoded:
        """Run the decoder over the (B, S, C) memory of L levels, the first two of one stride."""
        memory_with_pos = memory + pos
        levels = (features.projected[1], *features.projected[1:])
        masks = [None if x.padding_mask is None else x.padding_mask.flatten(1) for x in levels]
        sizes, units, grids = self._geometry(levels, features.image_sizes)
        modulated, modulated_queries = self.modulated(queries)
        tgt = queries.initial_content(memory.shape[0])
        outputs, reference, center = [], None, None
        for layer in self.decoder.layers:
            offsets, scales, predicted, shares = layer.locate(tgt, queries.pos)
            if predicted is not None:
                reference = with_given_centers(predicted, queries.centers)
                center = reference.sigmoid()[:, None, None] * sizes
            points = ((center + offsets) * units).unbind(1)
            scales = [None] * len(levels) if scales is None else scales.unbind(1)
            biases = [layer.bias(x, y, modulated, grid) for x, y, grid in zip(points, scales, grids, strict=True)]
            tgt = layer(tgt, memory, memory_with_pos, queries, masks, biases, shares)
            outputs.append(tgt)
        hidden = self.decoder.norm(torch.stack(outputs if all_layers else outputs[-1:]))
        return Decoded(hidden, reference * modulated_queries)

    def _geometry(self, levels: Sequence[ProjectedLevel], image_sizes: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what positions at the L levels are measured in.

        A Gaussian is as wide, in pixels, at every level: its distances are measured in features of the backbone's
        coarsest level.

        Returns:
            (B, L, 1, 1, 2) width and height of the images in features of each level; (L, 1, 1, 1) size of those
            features, relative to the coarsest of the backbone; for each level (s, 2) x and y of them in this unit.
        """
        device = levels[0].tensor.device
        units = [2.0 ** (i - (self.num_levels - 2)) for i in (1, *range(1, self.num_levels))]
        grids = [feature_grid(*x.tensor.shape[-2:], device) * unit for x, unit in zip(levels, units, strict=True)]
        units = torch.tensor(units)[:, None, None, None]
        sizes = image_sizes[:, None, None, None] / units
        return sizes.to(device, non_blocking=True), units.to(device, non_blocking=True), grids
