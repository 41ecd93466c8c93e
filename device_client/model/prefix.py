"""Keys and values in front of every text: what ``--method prefix`` tunes.

    attention of a text's token at i, in every block, over   K = [K_prefix; K_text], V = [V_prefix; V_text]
    positions                                                prefix 0 … m−1, text m, m+1, …
    θ                                                        per block K_prefix, V_prefix: (key heads, m, width)

So a prefix is what m tokens in front of the text would have left in every block's cache, but with any values. Keys are
kept as attention uses them, already rotated for their positions; the text is computed at the positions behind them,
learnt or rotary ones alike, and a sliding window hides the prefix where it would hide such tokens.

θ begins as the keys and values of m tokens, drawn uniformly from the vocabulary by the run's seed and run through the
bundle's own model, which is how MeZO begins ("real activations"). So a run does not begin as the bundle does.

Nothing of the text is kept: each block's keys and values live as long as its attention. Costs m more columns of
attention and a mask. Knows nothing about tasks. References: Li and Liang 2021
(arXiv 2101.00190); Malladi et al. 2023 (MeZO, arXiv 2305.17333).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from device_client.model.linear import SensitiveValues
from device_client.model.points import Point
from device_client.model.token_batch import TokenBatch
from device_client.model.tunable_model import START_STREAM
from shared.model_dimensions import Dimensions, dimensions_of
from shared.perturbation import random_generator

if TYPE_CHECKING:
    from device_client.model.sparse_model import SparseModel


class Prefix:
    """Keys and values at every point that is being evaluated.

    Attributes:
        length: m.

    Args:
        dimensions: Of the decoder.
        length: m.
        dtype: Compute dtype.
        device: Where it lies.
    """

    def __init__(self, dimensions: Dimensions, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.length = length
        self._shape = (dimensions.blocks, 2, dimensions.key_heads, length, dimensions.head_width)
        count = dimensions.blocks * 2 * length * dimensions.keys
        self._values = SensitiveValues(torch.zeros(count, dtype=dtype, device=device))

    def write(self, thetas: Sequence[Point]) -> None:
        """Take every θ, each rounded once to the compute dtype.

        Raises:
            ValueError: Another shape or dtype.
        """
        self._values.write(thetas)

    def in_front_of(self, row_count: int) -> PrefixCache:
        """Return what a decoder takes for a cache of so many rows, those of the first point first."""
        return PrefixCache(self._at_points(), row_count)

    def begin(self, cache: Any) -> Any:
        """Put the prefix of the only point into an empty transformers cache of one row, and return the cache."""
        for index, (keys, values) in enumerate(self._at_points()[0]):
            cache.update(keys[None].clone(), values[None].clone(), index)
        return cache

    def _at_points(self) -> Tensor:
        return self._values.of_layer(slice(None)).view(-1, *self._shape)


class PrefixCache:
    """Stands where a decoder expects a transformers cache that holds m tokens of each row; takes no more in.

    Args:
        at_points: (points, blocks, 2, key heads, m, width).
        row_count: Rows of all points.
    """

    def __init__(self, at_points: Tensor, row_count: int) -> None:
        self._at_points = at_points
        self._rows_each = row_count // at_points.shape[0]

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of prefix and text, (rows, heads, m + columns, width)."""
        own = self._at_points[:, layer_index].repeat_interleave(self._rows_each, dim=0)
        return torch.cat([own[:, 0], keys], dim=2), torch.cat([own[:, 1], values], dim=2)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Return m: the position of a text's first token."""
        return self._at_points.shape[-2]

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        """Return m."""
        return self._at_points.shape[-2]

    def get_mask_sizes(self, query_length: int, *_: Any, **__: Any) -> tuple[int, int]:
        """Return how many keys so many tokens attend to, and that they begin at position 0."""
        return self._at_points.shape[-2] + query_length, 0


class PrefixedModel:
    """A model with a prefix; it stays with the model, which then computes behind it whoever calls.

    Args:
        model: Stays at its own values.
        length: m.
        seed: Of the tokens that θ begins with.
    """

    def __init__(self, model: SparseModel, *, length: int, seed: int) -> None:
        self._model, self._own, self._seed = model, model.initial_theta(), seed
        self._dimensions = dimensions_of(model.config.architecture)
        self._prefix = Prefix(self._dimensions, length, model.compute_dtype, model.device)
        model.prefix = self._prefix

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.device

    @torch.no_grad()
    def initial_theta(self) -> Tensor:
        """Return the keys and values of m tokens that the seed draws, float32 (k,)."""
        from transformers import DynamicCache

        drawn = random_generator(self._seed, START_STREAM).bit_generator.random_raw(self._prefix.length)
        tokens = torch.tensor([[int(word) % self._dimensions.vocabulary for word in drawn]], device=self.device)
        cache: Any = DynamicCache()  # keeps all tokens, also where a window hides some
        with self._model.as_published():
            self._model.decoder(input_ids=tokens, past_key_values=cache, use_cache=True)
        states = [state.flatten() for layer in cache.layers for state in (layer.keys, layer.values)]
        return torch.cat(states).float()

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (k,), from now on.

        Raises:
            ValueError: Another shape or dtype.
        """
        self._prefix.write(thetas)
        self._model.write_points([self._own] * len(thetas))

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary)."""
        return self._model.logits(batch)
