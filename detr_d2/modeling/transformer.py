"""DETR's transformer (arXiv 2005.12872, section A.3): position embeddings enter at every attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.config import choice
from detr_d2.modeling.attention import MultiheadAttention
from detr_d2.modeling.layers import Dropout
from detr_d2.structures import Decoded, Features, Queries, QueryBlock

DETR_TRANSFORMER_REGISTRY = Registry("DETR_TRANSFORMER")
DETR_TRANSFORMER_REGISTRY.__doc__ = """
Transformers between the image features and the heads. Called with a cfg; the object has ``hidden_dim``
and the forward signature of :class:`DetrTransformer`.
"""


def build_transformer(cfg: CfgNode) -> nn.Module:
    """Build the transformer that ``MODEL.DETR.TRANSFORMER`` names."""
    return choice(DETR_TRANSFORMER_REGISTRY, "MODEL.DETR.TRANSFORMER", cfg.MODEL.DETR.TRANSFORMER)(cfg)


class TransformerLayer(nn.Module):
    """Base of encoder and decoder layers: residual branches with dropout, and the feed-forward network."""

    def __init__(self, hidden_dim: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.pre_norm = pre_norm
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.dropout = Dropout(dropout)

    def residual(self, x: Tensor, norm: nn.LayerNorm, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``branch`` to ``x``, with the layer norm before the branch or after the sum."""
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))


class EncoderLayer(TransformerLayer):
    """Self-attention of the features, then the feed-forward network."""

    def __init__(self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__(hidden_dim, dim_feedforward, dropout, pre_norm)
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)

    def forward(self, src: Tensor, pos: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Map (B, S, C) to (B, S, C); ``pos`` is (B or 1, S, C), ``padding_mask`` (B, S) or None."""

        def attend(x: Tensor) -> Tensor:
            with_pos = x + pos
            return self.self_attn(with_pos, with_pos, x, padding_mask)

        src = self.residual(src, self.norm1, attend)
        return self.residual(src, self.norm2, self.feed_forward)


class DecoderLayer(TransformerLayer):
    """Self-attention of the object queries, attention to the memory, then the feed-forward network."""

    cross_attention = MultiheadAttention

    def __init__(self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__(hidden_dim, dim_feedforward, dropout, pre_norm)
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.multihead_attn = self.cross_attention(hidden_dim, nheads, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_with_pos: Tensor,
        queries: Queries,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Update the content of the object queries.

        Args:
            tgt: (B, Q, C) content of the queries.
            memory: (B, S, C) output of the encoder.
            memory_with_pos: (B, S, C) the same with the position embedding.
            queries: the object queries.
            padding_mask: (B, S) bool, True where padded, or None.

        Returns:
            (B, Q, C)
        """

        def attend_to_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x + queries.pos, memory_with_pos, memory, padding_mask)

        return self.run(tgt, queries, attend_to_memory)

    def run(self, tgt: Tensor, queries: Queries, attend_to_memory: Callable[[Tensor], Tensor]) -> Tensor:
        """Self-attention of the queries, then ``attend_to_memory``, then the feed-forward network."""

        def attend_to_queries(x: Tensor) -> Tensor:
            return attend_within_groups(self.self_attn, x + queries.pos, x, queries.blocks)

        tgt = self.residual(tgt, self.norm1, attend_to_queries)
        tgt = self.residual(tgt, self.norm2, attend_to_memory)
        return self.residual(tgt, self.norm3, self.feed_forward)


def attend_within_groups(
    attention: MultiheadAttention, with_pos: Tensor, content: Tensor, blocks: Sequence[QueryBlock]
) -> Tensor:
    """Return the (B, Q, C) self-attention of object queries, each over those of its own group."""
    attended = []
    sizes = [block.num_queries for block in blocks]
    for block, *inputs in zip(blocks, with_pos.split(sizes, dim=1), content.split(sizes, dim=1), strict=True):
        mask = block.padding_mask
        if block.groups > 1:
            inputs = [x.unflatten(1, (block.groups, block.size)).flatten(0, 1) for x in inputs]
            mask = None if mask is None else mask.repeat_interleave(block.groups, dim=0)
        x = attention(inputs[0], *inputs, mask)
        attended.append(x if block.groups == 1 else x.unflatten(0, (-1, block.groups)).flatten(1, 2))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


class Encoder(nn.Module):
    """Encoder layers, with a norm at the end if they are pre-norm."""

    def __init__(self, layers: list[TransformerLayer], norm: nn.LayerNorm | None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, src: Tensor, pos: Tensor, padding: Any) -> Tensor:
        """Map (B, S, C) to (B, S, C); ``padding`` is the layers' third argument."""
        for layer in self.layers:
            src = layer(src, pos, padding)
        return src if self.norm is None else self.norm(src)


class Decoder(nn.Module):
    """Decoder layers, with one norm for the outputs of all of them."""

    def __init__(self, layers: list[DecoderLayer], norm: nn.LayerNorm):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, memory: Tensor, pos: Tensor, queries: Queries, padding_mask: Tensor | None, all_layers: bool
    ) -> Tensor:
        """Map (B, S, C) memory to (L, B, Q, C): every layer's output, or the last one's alone (L = 1)."""
        memory_with_pos = memory + pos
        tgt = queries.initial_content(memory.shape[0])
        outputs = []
        for layer in self.layers:
            tgt = layer(tgt, memory, memory_with_pos, queries, padding_mask)
            outputs.append(tgt)
        return self.norm(torch.stack(outputs if all_layers else outputs[-1:]))


@DETR_TRANSFORMER_REGISTRY.register()
class DetrTransformer(nn.Module):
    """The encoder-decoder of DETR."""

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        super().__init__()
        self.hidden_dim = hidden_dim
        sizes = (hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        encoder_norm = nn.LayerNorm(hidden_dim) if pre_norm else None
        self.encoder = Encoder([self.encoder_layer(*sizes) for _ in range(enc_layers)], encoder_norm)
        decoder_layers = [self.decoder_layer(i, *sizes) for i in range(dec_layers)]
        self.decoder = Decoder(decoder_layers, nn.LayerNorm(hidden_dim))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        return {
            "hidden_dim": detr.HIDDEN_DIM,
            "nheads": detr.NHEADS,
            "enc_layers": detr.ENC_LAYERS,
            "dec_layers": detr.DEC_LAYERS,
            "dim_feedforward": detr.DIM_FEEDFORWARD,
            "dropout": detr.DROPOUT,
            "pre_norm": detr.PRE_NORM,
        }

    def forward(self, features: Features, pos: Tensor, queries: Queries, *, all_layers: bool) -> Decoded:
        """Run encoder and decoder.

        Args:
            features: projected to (B, C, H, W).
            pos: (B or 1, C, H, W) position embedding.
            queries: the object queries.
            all_layers: return the output of every decoder layer (L of them), not of the last alone (L = 1).
        """
        src = features.tensor.flatten(2).transpose(1, 2)
        pos = pos.flatten(2).transpose(1, 2)
        mask = None if features.padding_mask is None else features.padding_mask.flatten(1)
        memory = self.encoder(src, pos, mask)
        decoded = self.decode(memory, pos, mask, queries, features, all_layers)
        return decoded._replace(memory=memory.transpose(1, 2).unflatten(-1, features.tensor.shape[-2:]))

    def encoder_layer(self, *sizes) -> TransformerLayer:
        """Build an encoder layer; variants of the encoder override this."""
        return EncoderLayer(*sizes)

    def decoder_layer(self, index: int, *sizes) -> DecoderLayer:
        """Build decoder layer number ``index``; variants of the decoder override this."""
        return DecoderLayer(*sizes)

    def decode(
        self,
        memory: Tensor,
        pos: Tensor,
        padding_mask: Tensor | None,
        queries: Queries,
        features: Features,
        all_layers: bool,
    ) -> Decoded:
        """Run the decoder over the (B, S, C) memory; variants of the decoder override this."""
        return Decoded(self.decoder(memory, pos, queries, padding_mask, all_layers))
