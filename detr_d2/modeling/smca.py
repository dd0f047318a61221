"""Spatially modulated co-attention (arXiv 2101.07448, section 3.2), which converges in a tenth of the epochs."""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from detr_d2.config import choice
from detr_d2.modeling.attention import MultiheadAttention
from detr_d2.modeling.backbone import Features
from detr_d2.modeling.build import DETR_TRANSFORMER_REGISTRY
from detr_d2.modeling.heads import MLP
from detr_d2.modeling.spatial_bias import SpatialBias
from detr_d2.modeling.transformer import DecoderLayer, DetrTransformer
from detr_d2.structures import Decoded
from detr_d2.utils.errors import UserError
from detr_d2.utils.precision import without_autocast

SCALES_PER_HEAD = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}
"""How many scales of the Gaussian each head predicts: none, one, x and y, or x, y and their product."""


class SpatialAttention(MultiheadAttention):
    """Attention whose logits get a bias for where the keys are."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, bias: SpatialBias
    ) -> Tensor:
        """As :class:`MultiheadAttention`, with the bias that ``bias`` describes."""
        return self.attend(*self.operands(query, key, value, padding_mask, bias))

    def operands(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, bias: SpatialBias
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
        q, k, v = self.project(query, key, value)
        if q.device.type == "cpu" and q.dtype.itemsize < 4:
            # The factors need float32, and attention on CPUs gains little from less.
            q, k, v = q.float(), k.float(), v.float()
        scale = q.shape[-1] ** -0.5
        if q.dtype == torch.float32 and not bias.has_product:
            of_queries, of_keys = bias.factors()
            q = torch.cat((q, of_queries / scale), dim=-1)
            k = torch.cat((k, of_keys.expand(*k.shape[:2], -1, -1)), dim=-1)
            mask = None if padding_mask is None else ~padding_mask[:, None, None, :]
        else:
            mask = bias.explicit()
            if padding_mask is not None:
                mask = mask.masked_fill(padding_mask[:, None, None, :], -torch.inf)
            mask = mask.to(q.dtype)
        return q, k, v, mask, scale


class SmcaDecoderLayer(DecoderLayer):
    """A decoder layer whose heads look around points that are predicted from the queries."""

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
    ):
        super().__init__(hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        self.smooth = smooth
        self.norm4 = nn.LayerNorm(hidden_dim)
        # The names of the authors' checkpoints: a reference point, an offset and scales for every head.
        self.point1 = MLP(hidden_dim, hidden_dim, 2, num_layers=3) if is_first else None
        self.point2 = nn.Linear(hidden_dim, 2 * nheads)
        self.point3 = nn.Linear(hidden_dim, scales_per_head * nheads) if scales_per_head else None

    def locate(self, tgt: Tensor, query_pos: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the queries say of where to look, in float32.

        Returns:
            (B, heads, Q, 2) offsets measured in features; (B, heads, Q, 1 to 3) scales of the Gaussian, if learned;
            from the first layer (B, Q, 2) reference points before the sigmoid.
        """
        located = self.norm4(tgt + query_pos)
        with without_autocast(tgt.device):
            located = located.float()
            heads = self.multihead_attn.num_heads
            offsets = self.point2(located).unflatten(-1, (heads, 2)).transpose(1, 2)
            scales = None
            if self.point3 is not None:
                scales = self.point3(located).unflatten(-1, (heads, -1)).transpose(1, 2).square()
            return offsets, scales, None if self.point1 is None else self.point1(located)

    def bias(self, point: Tensor, scales: Tensor | None, modulated: Tensor, size: tuple[int, int]) -> SpatialBias:
        """The bias around (B, heads, Q, 2) points; ``modulated``, (heads, Q, 1), is 0 where there is none."""
        if scales is None:
            scales = point.new_ones(1)
        if scales.shape[-1] == 1:
            scales = scales.expand(*point.shape)
        return SpatialBias(point, scales * modulated / self.smooth, size)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        located_memory: Tensor,
        query_pos: Tensor,
        padding_mask: Tensor | None,
        bias: SpatialBias,
    ) -> Tensor:
        def attend_to_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x + query_pos, located_memory, memory, padding_mask, bias)

        return self.run(tgt, query_pos, attend_to_memory)


@DETR_TRANSFORMER_REGISTRY.register()
class SmcaTransformer(DetrTransformer):
    """DETR's transformer with spatially modulated cross attention in the decoder."""

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
        """
        Args:
            dynamic_scale: a key of :data:`SCALES_PER_HEAD`.
            smooth: what the squared distance, in features, is divided by.
            head_mixture: only the first half of the heads is modulated.
            query_mixture: only the second half of the queries is modulated, and predicts boxes around its points.
            transformer: as for :class:`DetrTransformer`.
        """
        # The parent's constructor makes the decoder layers, which need the first two.
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
        query_pos: Tensor,
        features: Features,
        all_layers: bool,
    ) -> Decoded:
        located_memory = memory + pos
        size = tuple(features.tensor.shape[-2:])
        modulated, modulated_queries = self._modulated(query_pos)
        extents = features.extents.to(memory.device, non_blocking=True)[:, None]
        tgt = query_pos.new_zeros(memory.shape[0], *query_pos.shape)
        outputs, reference, center = [], None, None
        for layer in self.decoder.layers:
            offsets, scales, predicted = layer.locate(tgt, query_pos)
            if predicted is not None:
                reference = predicted
                center = (predicted.sigmoid() * extents)[:, None]
            bias = layer.bias(center + offsets, scales, modulated, size)
            tgt = layer(tgt, memory, located_memory, query_pos, padding_mask, bias)
            outputs.append(tgt)
        hidden = self.decoder.norm(torch.stack(outputs if all_layers else outputs[-1:]))
        return Decoded(hidden, reference * modulated_queries)

    def _modulated(self, query_pos: Tensor) -> tuple[Tensor, Tensor]:
        """(heads, Q, 1) and (Q, 1): 1 where the Gaussian is, 0 elsewhere."""
        nheads = self.decoder.layers[0].multihead_attn.num_heads
        heads, queries = (torch.ones(n, 1, device=query_pos.device) for n in (nheads, len(query_pos)))
        if self.head_mixture:
            heads[nheads // 2 :] = 0
        if self.query_mixture:
            queries[: len(query_pos) // 2] = 0
        return heads[:, None] * queries, queries
