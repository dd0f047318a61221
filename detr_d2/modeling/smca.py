"""Spatially modulated co-attention (arXiv 2101.07448, section 3.2), which converges in a tenth of the epochs."""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.config import choice
from detr_d2.modeling.attention import MultiheadAttention
from detr_d2.modeling.layers import MLP
from detr_d2.modeling.position_encoding import feature_grid
from detr_d2.modeling.transformer import DETR_TRANSFORMER_REGISTRY, DecoderLayer, DetrTransformer
from detr_d2.structures import Decoded, Features, Queries
from detr_d2.utils.errors import UserError
from detr_d2.utils.precision import without_autocast

SCALES_PER_HEAD = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}
"""Number of the Gaussian's scales that each head predicts: none, one, x and y, or x, y and their product."""

# Fused kernels take head sizes that are multiples of this.
_HEAD_SIZE_STEP = 8


class SpatialBias(NamedTuple):
    """The Gaussian (equations 4 to 6) as a bias of attention: - (w_x dx² + w_y dy² + w_xy dx² dy²).

    dx and dy are the distances of a feature from a query's point.
    """

    point: Tensor
    """(B, heads, Q, 2) x and y, measured in features from the center of the first."""
    weight: Tensor
    """(B, heads, Q, 2 or 3) weights of the squared distances along x and y and, optionally, of their product."""
    grid: Tensor
    """(S, 2) x and y of every feature, see :func:`feature_grid`."""

    @property
    def has_product(self) -> bool:
        """Whether the product of the squared distances has a weight."""
        return self.weight.shape[-1] == 3

    def explicit(self) -> Tensor:
        """Return the bias itself: (B, heads, Q, S)."""
        squared = (self.point[..., None, :] - self.grid).square()
        bias = (squared * self.weight[..., None, :2]).sum(-1)
        if self.has_product:
            bias = bias + squared.prod(-1) * self.weight[..., 2:]
        return -bias

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return vectors whose product is the bias, up to a constant per query, which cancels in a softmax.

        -w (p - g)² = 2 w p g - w g² - w p²: with g and g² of both axes as the features' vectors no tensor of the size
        of the attention is needed. Needs float32, since the terms are large where their sum is small.

        Returns:
            (B, heads, Q, D) for the queries, (1, 1, S, D) for the features; D is padded with zeros.
        """
        query_factors = torch.cat((2 * self.weight * self.point, -self.weight), dim=-1)
        feature_factors = torch.cat((self.grid, self.grid.square()), dim=-1)
        padding = -query_factors.shape[-1] % _HEAD_SIZE_STEP
        query_factors, feature_factors = (F.pad(x, (0, padding)) for x in (query_factors, feature_factors))
        return query_factors, feature_factors[None, None]


class SpatialAttention(MultiheadAttention):
    """Attention whose logits have a bias for the positions of the keys."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, bias: SpatialBias
    ) -> Tensor:
        """Return the queries' mix of the values, as :class:`MultiheadAttention` does, with a bias."""
        return self.attend(*self.operands(query, key, value, padding_mask, bias))

    def operands(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, bias: SpatialBias
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
        """Return the arguments of :meth:`attend` for those of ``forward``."""
        return self.modulated(*self.project(query, key, value), padding_mask, bias)

    def modulated(
        self, q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None, bias: SpatialBias
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
        """Return the arguments of :meth:`attend` for projected inputs: as factors of the bias where they are exact."""
        if q.device.type == "cpu" and q.dtype.itemsize < 4:
            # The factors need float32, and attention on CPUs gains little from less.
            q, k, v = q.float(), k.float(), v.float()
        scale = q.shape[-1] ** -0.5
        if q.dtype == torch.float32 and not bias.has_product:
            query_factors, key_factors = bias.factors()
            q = torch.cat((q, query_factors / scale), dim=-1)
            k = torch.cat((k, key_factors.expand(*k.shape[:2], -1, -1)), dim=-1)
            mask = None if padding_mask is None else ~padding_mask[:, None, None, :]
        else:
            mask = bias.explicit()
            if padding_mask is not None:
                mask = mask.masked_fill(padding_mask[:, None, None, :], -torch.inf)
            mask = mask.to(q.dtype)
        return q, k, v, mask, scale


class SmcaDecoderLayer(DecoderLayer):
    """A decoder layer whose heads attend around reference points that are predicted from the queries."""

    cross_attention = SpatialAttention

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        scales_per_head: int,
        smooth: float,
        is_first: bool,
        num_levels: int = 1,
    ):
        super().__init__(hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        self.smooth = smooth
        self.norm4 = nn.LayerNorm(hidden_dim)
        # The names of the authors' checkpoints: a reference point, an offset and scales for every head at every level.
        self.point1 = MLP(hidden_dim, hidden_dim, 2, num_layers=3) if is_first else None
        self.point2 = nn.Linear(hidden_dim, 2 * nheads * num_levels)
        self.point3 = None
        if scales_per_head:
            self.point3 = nn.Linear(hidden_dim, scales_per_head * nheads * num_levels)

    def locate(self, tgt: Tensor, query_pos: Tensor) -> tuple:
        """Predict from the queries where to attend, in float32.

        Returns:
            (B, heads, Q, 2) offsets measured in features; (B, heads, Q, 1 to 3) scales of the Gaussian, if learned;
            from the first layer (B, Q, 2) reference points before the sigmoid.
        """
        with_pos = self.norm4(tgt + query_pos)
        with without_autocast(tgt.device):
            return self.predict(with_pos.float())

    def predict(self, with_pos: Tensor) -> tuple:
        """Return the predictions of :meth:`locate` from its (B, Q, C) normalized input, heads within levels."""
        offsets = self.point2(with_pos).unflatten(-1, (-1, 2)).transpose(1, 2)
        scales = None
        if self.point3 is not None:
            scales = self.point3(with_pos).unflatten(-1, (offsets.shape[1], -1)).transpose(1, 2).square()
        return offsets, scales, None if self.point1 is None else self.point1(with_pos)

    def float32_layers(self) -> list[nn.Module]:
        """Return the layers of :meth:`predict`, which are float32 in every precision of the model."""
        return [x for x in (self.point1, self.point2, self.point3) if x is not None]

    def bias(self, point: Tensor, scales: Tensor | None, modulated: Tensor, grid: Tensor) -> SpatialBias:
        """Return the bias around (B, heads, Q, 2) points; ``modulated``, (heads, Q, 1), is 0 where it is off."""
        if scales is None:
            scales = point.new_ones(1)
        if scales.shape[-1] == 1:
            scales = scales.expand(*point.shape)
        return SpatialBias(point, scales * modulated / self.smooth, grid)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_with_pos: Tensor,
        queries: Queries,
        padding_mask: Tensor | None,
        bias: SpatialBias,
    ) -> Tensor:
        """Update the content of the object queries, as :class:`DecoderLayer` does, with a bias."""

        def attend_to_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x + queries.pos, memory_with_pos, memory, padding_mask, bias)

        return self.run(tgt, queries, attend_to_memory)


@DETR_TRANSFORMER_REGISTRY.register()
class SmcaTransformer(DetrTransformer):
    """DETR's transformer with spatially modulated cross attention in the decoder.

    Args:
        dynamic_scale: a key of :data:`SCALES_PER_HEAD`.
        smooth: divisor of the squared distance, which is measured in features.
        head_mixture: only the first half of the heads is modulated.
        query_mixture: only the second half of the queries is modulated, and predicts boxes around its points.
        transformer: arguments of :class:`DetrTransformer`.
    """

    @configurable
    def __init__(
        self,
        *,
        dynamic_scale: str = "type3",
        smooth: float = 8.0,
        head_mixture: bool = False,
        query_mixture: bool = False,
        **transformer,
    ):
        # The parent's constructor builds the decoder layers, which read these.
        self.scales_per_head = choice(SCALES_PER_HEAD, "MODEL.DETR.SMCA.DYNAMIC_SCALE", dynamic_scale)
        if smooth <= 0:
            raise UserError(f"MODEL.DETR.SMCA.SMOOTH is {smooth}: set a number over 0.")
        self.smooth = smooth
        self.head_mixture = head_mixture
        self.query_mixture = query_mixture
        super().__init__(**transformer)
        for layer in self.decoder.layers:
            if layer.point3 is not None:
                nn.init.zeros_(layer.point3.weight)
                nn.init.ones_(layer.point3.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        smca = detr.SMCA
        for mixture, key in (("HEAD_MIXTURE", "NHEADS"), ("QUERY_MIXTURE", "NUM_OBJECT_QUERIES")):
            if smca[mixture] and detr[key] % 2:
                raise UserError(
                    f"MODEL.DETR.SMCA.{mixture} modulates one half, but MODEL.DETR.{key} is {detr[key]}: "
                    "set an even number."
                )
        return {
            **DetrTransformer.from_config(cfg),
            "dynamic_scale": smca.DYNAMIC_SCALE,
            "smooth": smca.SMOOTH,
            "head_mixture": smca.HEAD_MIXTURE,
            "query_mixture": smca.QUERY_MIXTURE,
        }

    def decoder_layer(self, index: int, *sizes) -> SmcaDecoderLayer:
        return SmcaDecoderLayer(*sizes, self.scales_per_head, self.smooth, is_first=index == 0)

    def decode(
        self,
        memory: Tensor,
        pos: Tensor,
        padding_mask: Tensor | None,
        queries: Queries,
        features: Features,
        all_layers: bool,
    ) -> Decoded:
        memory_with_pos = memory + pos
        grid = feature_grid(*features.tensor.shape[-2:], memory.device)
        modulated, modulated_queries = self.modulated(queries)
        image_sizes = features.image_sizes.to(memory.device, non_blocking=True)[:, None]
        tgt = queries.initial_content(memory.shape[0])
        outputs, reference, center = [], None, None
        for layer in self.decoder.layers:
            offsets, scales, predicted = layer.locate(tgt, queries.pos)
            if predicted is not None:
                reference = with_given_centers(predicted, queries.centers)
                center = (reference.sigmoid() * image_sizes)[:, None]
            bias = layer.bias(center + offsets, scales, modulated, grid)
            tgt = layer(tgt, memory, memory_with_pos, queries, padding_mask, bias)
            outputs.append(tgt)
        hidden = self.decoder.norm(torch.stack(outputs if all_layers else outputs[-1:]))
        return Decoded(hidden, reference * modulated_queries)

    def modulated(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Return (heads, Q, 1) and (Q, 1): 1 where the Gaussian is on, 0 elsewhere."""
        nheads = self.decoder.layers[0].multihead_attn.num_heads
        heads = torch.ones(nheads, 1, 1, device=queries.pos.device)
        if self.head_mixture:
            heads[nheads // 2 :] = 0
        own, *others = queries.blocks
        first = torch.ones(own.groups, own.size, 1, device=queries.pos.device)
        if self.query_mixture:
            first[:, : own.size // 2] = 0
        # Queries that are given a center always use it.
        rest = first.new_ones(sum(block.num_queries for block in others), 1)
        modulated_queries = torch.cat((first.flatten(0, 1), rest))
        return heads * modulated_queries, modulated_queries


def with_given_centers(predicted: Tensor, centers: Tensor | None) -> Tensor:
    """Replace the last of the (B, Q, 2) reference points, before the sigmoid, by the given (B, N, 2) centers."""
    if centers is None:
        return predicted
    given = centers.to(predicted.dtype).logit(eps=1e-3)
    return torch.cat((predicted[:, : -centers.shape[1]], given), dim=1)
