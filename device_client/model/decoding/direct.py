"""Decode one token at a time through a block's weights themselves, on a CPU.

transformers' modules serve any number of tokens; for one, what they do between two products (some 50 small operations
per block, in caches that the weights have just swept) takes a sixth of the time. Here it is ten steps:

    norm · q, k, v side by side · attend · o · add · norm · gate, up side by side · activate · down · add

Keys and values lie in buffers that grow by ``GROWTH_TOKENS``, where transformers' cache copies them for every token.
The prompt goes through transformers' modules. Numbers are rounded where those round them, attention's at its end alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from device_client.model.backends.token_kernels import Factor, KeptHeads, SideBySide, TokenHeads, TokenKernels
from device_client.model.decoding.attention import steps_are_alike, window_of
from device_client.model.decoding.cache import empty_cache, forget
from device_client.model.linear import LinearRuntime, QuantizedSparseLinear
from device_client.planning.workload import GROWTH_TOKENS
from shared.model_families import FAMILIES

_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_GATED_INPUTS = ("gate_proj", "up_proj")


def can_be_direct(decoder: Any, config: Any) -> bool:
    """Return whether a transformers decoder consists of blocks that are known here, all their products packed alone."""
    family = FAMILIES.get(config.model_type)
    is_known = family is not None and family.is_llama_like
    return is_known and steps_are_alike(config) and all(map(_is_packed, decoder.layers))


def _is_packed(layer: Any) -> bool:
    linears = [module for module in layer.modules() if isinstance(module, QuantizedSparseLinear)]
    if any(linear.addition is not None for linear in linears):
        return False
    return len(linears) == len(_ATTENTION_INPUTS) + len(_GATED_INPUTS) + 2


class DirectDecoding:
    """Decodes one text at a time; a new ``prefill`` begins another one.

    Args:
        decoder: A transformers decoder that ``can_be_direct``.
        head: Hidden states to logits.
        config: The decoder's transformers configuration.
        runtime: What its packed layers share, at one point.
        kernels: The runtime's backend's.
    """

    def __init__(
        self, decoder: Any, head: nn.Module, config: Any, runtime: LinearRuntime, kernels: TokenKernels
    ) -> None:
        self._decoder, self._head, self._runtime = decoder, head, runtime
        self._norm = _Norm.of(decoder.norm, kernels)
        self._blocks = [_Block(layer, kernels, window_of(config)) for layer in decoder.layers]
        self._values: Tensor | None = None
        self._length = 0

    @property
    def kept_tokens(self) -> int:
        """For how many tokens it holds keys and values, or room for them."""
        return max(block.kept_tokens for block in self._blocks)

    @torch.no_grad()
    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Begin a text and return the logits after its last token, float32 (vocabulary,)."""
        self._length = 0  # an interrupted prompt leaves no text
        cache = empty_cache(self._decoder)  # keeps all tokens, also where a window hides some
        outputs = self._decoder(input_ids=torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.keep(layer.keys[0], layer.values[0])
            forget(layer)
        self._length = len(token_ids)
        return self._logits(outputs.last_hidden_state[:, -1])

    @torch.no_grad()
    def step(self, token_id: int) -> Tensor:
        """Append a token and return the logits after it, float32 (vocabulary,).

        Raises:
            ValueError: There is no prompt yet, or the runtime is at several points.
        """
        if self._length == 0 or self._runtime.values.points != 1:
            found = f"a step after {self._length} tokens at {self._runtime.values.points} points"
            raise ValueError(f"{found}; needed a prompt, and one point")
        self._follow_values()
        hidden = self._decoder.embed_tokens(torch.tensor(token_id))
        cosines, sines = self._decoder.rotary_emb(hidden, torch.tensor([[self._length]]))
        for block in self._blocks:
            block.advance(hidden, self._length, cosines, sines)
        self._length += 1
        return self._logits(self._norm(hidden)[None])

    def _follow_values(self) -> None:
        """Let products read the sensitive values where they lie now: overwriting them in place does not move them."""
        values = self._runtime.values.of(slice(None), 0)
        if self._values is None or self._values.data_ptr() != values.data_ptr():
            self._values = values
            for block in self._blocks:
                block.read(values)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        return logits[0].float()


class _Block:
    """One block, and the keys and values of its attention."""

    def __init__(self, layer: Any, kernels: TokenKernels, window: int | None) -> None:
        attention, gated = layer.self_attn, layer.mlp
        self._kernels = kernels
        self._size, self._scale = attention.head_dim, attention.scaling
        self._norms = [_Norm.of(norm, kernels) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        self._head_norms = [_Norm.of(getattr(attention, name, None), kernels) for name in ("q_norm", "k_norm")]
        self._activation = gated.act_fn
        self._layers = (
            [getattr(attention, name) for name in _ATTENTION_INPUTS], [attention.o_proj],
            [getattr(gated, name) for name in _GATED_INPUTS], [gated.down_proj],
        )  # fmt: skip
        self._products: list[SideBySide] = []
        self._kept = _KeptTokens(window)

    @property
    def kept_tokens(self) -> int:
        return self._kept.capacity

    def read(self, values: Tensor) -> None:
        """Read sensitive values there from now on, (k,) of all layers."""
        self._products = [
            self._kernels.side_by_side([Factor(layer.packed, values[layer.where], layer.bias) for layer in layers])
            for layers in self._layers
        ]

    def keep(self, keys: Tensor, values: Tensor) -> None:
        """Begin with the keys and values of a prompt, (heads, tokens, size)."""
        self._kept.begin(keys, values)

    def advance(self, hidden: Tensor, position: int, cosines: Tensor, sines: Tensor) -> None:
        """Change a token's hidden state (hidden,) to that behind the block."""
        attention_inputs, attention_output, gated_inputs, gated_output = self._products
        query, key, value = (part.view(-1, self._size) for part in attention_inputs(self._norms[0](hidden)))
        for norm, heads in zip(self._head_norms, (query, key), strict=True):
            norm(heads, out=heads)
        token = TokenHeads(query, key, value, cosines, sines)
        mixed = self._kernels.attend(token, self._kept.with_room_for(position), self._scale)
        hidden.add_(*attention_output(mixed))
        gate, up = gated_inputs(self._norms[1](hidden))
        hidden.add_(*gated_output(self._activation(gate).mul_(up)))


class _KeptTokens:
    """Keys and values of the tokens that the next one attends to, and of some before, (heads, capacity, size)."""

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._keys = self._values = torch.empty(0)
        self._dropped = 0

    @property
    def capacity(self) -> int:
        return self._keys.shape[1]

    def begin(self, keys: Tensor, values: Tensor) -> None:
        self._dropped = 0
        self._move(keys, values)

    def with_room_for(self, position: int) -> KeptHeads:
        if position - self._dropped == self.capacity:
            self._move(self._keys, self._values)
        place = position - self._dropped
        return KeptHeads(self._keys, self._values, self._unseen(place), place)

    def _move(self, keys: Tensor, values: Tensor) -> None:
        unseen = self._unseen(keys.shape[1])
        self._dropped += unseen
        self._keys, self._values = _with_room(keys[:, unseen:]), _with_room(values[:, unseen:])

    def _unseen(self, place: int) -> int:
        """Return how many of the kept tokens lie before the window of the token at that place."""
        return 0 if self._window is None else max(0, place + 1 - self._window)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A transformers RMSNorm, or none, and a buffer for what it returns."""

    weight: Tensor | None
    epsilon: float
    buffer: Tensor
    kernels: TokenKernels

    @classmethod
    def of(cls, module: Any, kernels: TokenKernels) -> _Norm:
        if module is None:
            return cls(None, 0.0, torch.empty(0), kernels)
        return cls(module.weight, module.variance_epsilon, torch.empty_like(module.weight), kernels)

    def __call__(self, inputs: Tensor, *, out: Tensor | None = None) -> Tensor:
        if self.weight is None:
            return inputs
        outputs = self.buffer if out is None else out
        self.kernels.norm(inputs, self.weight, self.epsilon, outputs)
        return outputs


def _with_room(kept: Tensor) -> Tensor:
    """Return a buffer that begins with keys or values (heads, tokens, size), with room for ``GROWTH_TOKENS`` more."""
    heads, tokens, size = kept.shape
    buffer = kept.new_empty(heads, tokens + GROWTH_TOKENS, size)
    buffer[:, :tokens] = kept
    return buffer
