"""A Llama-like decoder that reads texts: transformers' modules by name and by what they compute, without transformers.

    h ← h + o(attend(rotate(q(norm h)), rotate(k(norm h)), v(norm h)))        a block's attention
    h ← h + down(silu(gate(norm h)) · up(norm h))                             a block's MLP
    norm(x) = w · x / √(mean(x²) + ε), computed in float32

Importing transformers' modelling code takes three seconds and 230 MB, which is most of what a person waits for before
the first token. Parameters have the names that transformers gives them, so a bundle loads into either.

Several texts are read side by side without padding: their new tokens lie one behind the other, so every product is
one for all of them, and each text attends to its own keys. So whether a text is at its prompt or at its next token,
alone or beside others, is all one path. Serves a CPU. Knows nothing about how weights are packed, or about tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from device_client.model.text_network.keys import LayerKeys, TextKeys
from device_client.model.text_network.rotation import Rotation, rotary_frequencies, rotate
from device_client.model.text_network.shape import LlamaShape


class LlamaForText(nn.Module):
    """The network: decoder and output matrix.

    Args:
        shape: What it computes. Weights are made on the current default device (``meta``: no memory).
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.config = shape
        self.model = LlamaDecoder(shape)
        self.lm_head = _Linear(shape.dimensions.hidden, shape.dimensions.vocabulary, bias=False)
        if shape.is_tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_decoder(self) -> LlamaDecoder:
        """Return the network without its head."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the output matrix."""
        return self.lm_head


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where the new tokens of one text lie among those of all, and what of the text each of them attends to."""

    where: slice
    mask: Tensor | None


class LlamaDecoder(nn.Module):
    """Tokens to hidden states.

    Attributes:
        shape: What it computes.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        dimensions = shape.dimensions
        self.embed_tokens = _Embedding(dimensions.vocabulary, dimensions.hidden)
        self.layers = nn.ModuleList(_Block(shape) for _ in range(dimensions.blocks))
        self.norm = RMSNorm(dimensions.hidden, shape.norm_epsilon)
        self.rotary_emb = Rotation(rotary_frequencies(shape.rope_parameters, dimensions.head_width))
        self.shape = shape
        self._window = shape.sliding_window

    def empty_cache(self) -> TextKeys:
        """Return keys and values of no token."""
        return TextKeys([LayerKeys(self._window) for _ in self.layers])

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: TextKeys | None = None,
        use_cache: bool = True,  # noqa: ARG002 - transformers' decoders take it
    ) -> SimpleNamespace:
        """Return ``last_hidden_state``, compute dtype (1, tokens, hidden), and extend the keys and values.

        Args:
            input_ids: int64 (1, tokens), behind the tokens whose keys are given.
            past_key_values: From ``empty_cache``; None begins a text and keeps nothing.
            use_cache: Changes nothing: keys are kept wherever they are given.
        """
        kept = past_key_values or self.empty_cache()
        return SimpleNamespace(last_hidden_state=self.read([kept], [input_ids[0].tolist()])[None])

    def read(self, texts: Sequence[TextKeys], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append new tokens to several texts and return their hidden states, compute dtype (new tokens, hidden).

        Args:
            texts: Keys and values of each text so far; extended.
            new_ids: At least one token for each text; the states lie in this order, text by text.
        """
        pieces, positions, end = [], [], 0
        for text, ids in zip(texts, new_ids, strict=True):
            pieces.append(_Piece(slice(end, end + len(ids)), self._mask(text.tokens, len(ids))))
            positions.append(torch.arange(text.tokens, text.tokens + len(ids)))
            end += len(ids)
        hidden = self.embed_tokens(torch.tensor([token for ids in new_ids for token in ids]))
        angles = self.rotary_emb(hidden, torch.cat(positions))
        for number, block in enumerate(self.layers):
            hidden = block(hidden, angles, pieces, [text.layers[number] for text in texts])
        outputs: Tensor = self.norm(hidden)
        return outputs

    def _mask(self, begin: int, count: int) -> Tensor | None:
        """Return which tokens (1, 1, count, begin + count) each new one attends to; None is all up to itself."""
        is_windowed = self._window is not None and begin + count > self._window
        if not is_windowed and (begin == 0 or count == 1):
            return None
        distance = torch.arange(begin, begin + count)[:, None] - torch.arange(begin + count)
        is_seen = distance >= 0
        if self._window is not None:
            is_seen &= distance < self._window
        return is_seen[None, None]


class _Block(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        hidden, epsilon = shape.dimensions.hidden, shape.norm_epsilon
        self.self_attn = _Attention(shape)
        self.mlp = _GatedMLP(shape)
        self.input_layernorm = RMSNorm(hidden, epsilon)
        self.post_attention_layernorm = RMSNorm(hidden, epsilon)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], pieces: Sequence[_Piece], kept: Sequence[LayerKeys]
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), angles, pieces, kept)
        outputs: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return outputs


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        dimensions, biased = shape.dimensions, shape.biased
        self.q_proj = _Linear(dimensions.hidden, dimensions.queries, bias="q_proj" in biased)
        self.k_proj = _Linear(dimensions.hidden, dimensions.keys, bias="k_proj" in biased)
        self.v_proj = _Linear(dimensions.hidden, dimensions.keys, bias="v_proj" in biased)
        self.o_proj = _Linear(dimensions.queries, dimensions.hidden, bias="o_proj" in biased)
        if shape.has_head_norms:
            self.q_norm = RMSNorm(dimensions.head_width, shape.norm_epsilon)
            self.k_norm = RMSNorm(dimensions.head_width, shape.norm_epsilon)
        self.head_dim = dimensions.head_width
        self.scaling = self.head_dim**-0.5
        self._has_head_norms = shape.has_head_norms
        self._shares_keys = dimensions.heads != dimensions.key_heads

    def forward(
        self, inputs: Tensor, angles: tuple[Tensor, Tensor], pieces: Sequence[_Piece], kept: Sequence[LayerKeys]
    ) -> Tensor:
        query, key, value = (
            projection(inputs).view(len(inputs), -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self._has_head_norms:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (heads.transpose(0, 1)[None] for heads in (query, key, value))  # (1, heads, tokens, width)
        query, key = rotate(query, *angles), rotate(key, *angles)
        mixed = [
            self._attend(query, layer.extend(key[:, :, piece.where], value[:, :, piece.where]), piece)
            for piece, layer in zip(pieces, kept, strict=True)
        ]
        outputs: Tensor = self.o_proj(torch.cat(mixed))
        return outputs

    def _attend(self, query: Tensor, kept: tuple[Tensor, Tensor], piece: _Piece) -> Tensor:
        """Return what the tokens of one text take from its keys and values, (tokens, heads · width)."""
        mixed = functional.scaled_dot_product_attention(
            query[:, :, piece.where],
            *kept,
            attn_mask=piece.mask,
            is_causal=piece.mask is None and piece.where.stop - piece.where.start > 1,
            scale=self.scaling,
            enable_gqa=self._shares_keys,
        )
        return mixed[0].transpose(0, 1).flatten(1)


class _GatedMLP(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        hidden, wide = shape.dimensions.hidden, shape.dimensions.intermediate
        self.gate_proj = _Linear(hidden, wide, bias="gate_proj" in shape.biased)
        self.up_proj = _Linear(hidden, wide, bias="up_proj" in shape.biased)
        self.down_proj = _Linear(wide, hidden, bias="down_proj" in shape.biased)
        self.act_fn = nn.SiLU()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.down_proj(self.act_fn(self.gate_proj(inputs)) * self.up_proj(inputs))
        return outputs


class _Linear(nn.Linear):
    """A linear layer whose weight a bundle gives: nothing is drawn for it, which would import torch's compiler."""

    def reset_parameters(self) -> None:
        """Leave the weight as it is."""


class _Embedding(nn.Embedding):
    """An embedding whose weight a bundle gives."""

    def reset_parameters(self) -> None:
        """Leave the weight as it is."""


class RMSNorm(nn.Module):
    """w · x / √(mean(x²) + ε), computed in float32 and rounded before the weight, as transformers rounds it.

    Args:
        width: Of the last dimension.
        epsilon: ε.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normed ``inputs`` (…, width), in their dtype."""
        wide = inputs.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(inputs.dtype)
