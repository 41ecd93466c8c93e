"""A token embedding and an output head that stay packed: rows are decoded where a token is looked up or scored.

    look-up     E[token] = dequantise(the row's codes) · s      s: a factor that some families keep in the embedding
    head        logits[t, v] = Σ_c x[t, c] W[v, c] + b[v]       W in decoded tiles of rows, or multiplied from its codes

Both may hold the same packed weight: tied embeddings are one tensor in memory, as in the bundle. The whole matrix is
never decoded. Neither has sensitive values, so every point θ sees the same weight: a tile is decoded once for all of
them. All backends decode to the same bits, so what is tuned does not depend on the backend; only generating uses its
fused product. Costs one tile beside the outputs. Knows nothing about tasks or training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from device_client.model.backends.library_product import aligned
from device_client.model.backends.planned_bytes import HEAD_TILE_ROWS
from device_client.model.backends.token_kernels import Factor
from device_client.model.backends.weight import Weight
from device_client.model.linear import LinearRuntime
from shared.quantization.codec import QuantizedTensor, dequantize

_TRANSPOSED_UP_TO_TOKENS = 64
"""On a CPU, for so few tokens a tile is the left operand: a library takes it as it lies and does not pack it first."""


class QuantizedEmbedding(nn.Module):
    """A table of tokens whose rows are decoded at each look-up.

    Args:
        table: The rows of all tokens.
        dtype: Compute dtype.
        factor: What every row is multiplied with, after it was rounded to the compute dtype; None for nothing.
    """

    def __init__(self, table: QuantizedTensor, dtype: torch.dtype, factor: float | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.shape
        self.table = table
        self._dtype = dtype
        self._factor = None if factor is None else torch.tensor(factor).to(dtype).item()

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the tokens' rows, compute dtype (…, embedding_dim), for integer ``token_ids`` (…)."""
        rows = dequantize(self.table.take(token_ids.reshape(-1)), dtype=self._dtype)
        if self._factor is not None:
            rows = rows * self._factor
        return rows.view(*token_ids.shape, self.embedding_dim)


class QuantizedHead(nn.Module):
    """Hidden states to logits, with a weight that is decoded in tiles.

    Args:
        weight: One row per token, without sensitive values.
        bias: Compute dtype (vocabulary,), or None.
        runtime: What the model's packed layers share.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, runtime: LinearRuntime) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = weight
        self.bias = bias
        self._runtime = runtime
        at_once = HEAD_TILE_ROWS[runtime.values.device.type]
        starts = range(0, self.out_features, at_once)
        self._tiles = [slice(start, min(start + at_once, self.out_features)) for start in starts]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (…, vocabulary), for one point's hidden states (…, in_features), in their dtype."""
        tokens = hidden.reshape(-1, self.in_features)
        if len(tokens) <= self._runtime.fused_up_to_tokens:
            logits = self.packed.multiply_few(tokens, self.factor().values, self.bias)
        else:
            logits = self.write_logits(tokens[None], tokens.new_empty(1, len(tokens), self.out_features))[0]
        return logits.view(*hidden.shape[:-1], self.out_features)

    def factor(self) -> Factor:
        """Return the weight for kernels of single tokens."""
        return Factor(self.packed, self._runtime.values.of(slice(0), 0), self.bias)

    def write_logits(self, stacked: Tensor, logits: Tensor) -> Tensor:
        """Write the logits of every point to ``logits`` (points, tokens, vocabulary), of any dtype, and return it.

        Args:
            stacked: Compute dtype (points, tokens, in_features).
            logits: Where they go.
        """
        inputs = [aligned(of_point) for of_point in stacked]
        for rows in self._tiles:
            dense = self.packed.decode(rows=rows)
            for of_point, tokens in zip(logits, inputs, strict=True):
                of_point[:, rows] = self._product(tokens, dense, rows)
        return logits

    def multiply_transposed(self, gradients: Tensor) -> Tensor:
        """Return G W, compute dtype (…, in_features), for the gradients G (…, vocabulary) of one point's logits."""
        stacked = gradients.reshape(-1, self.out_features)
        total = stacked.new_zeros(len(stacked), self.in_features, dtype=torch.float32)
        for rows in self._tiles:
            total += torch.mm(stacked[:, rows], self.packed.decode(rows=rows))
        return total.to(gradients.dtype).view(*gradients.shape[:-1], self.in_features)

    def _product(self, tokens: Tensor, dense: Tensor, rows: slice) -> Tensor:
        if tokens.device.type == "cpu" and len(tokens) <= _TRANSPOSED_UP_TO_TOKENS:
            product = torch.mm(dense, tokens.T).T
        else:
            product = torch.mm(tokens, dense.T)
        return product if self.bias is None else product + self.bias[rows]

    def extra_repr(self) -> str:
        """Name its shape."""
        return f"{self.in_features}, {self.out_features}"
