"""What a CPU must compute point by point, so that points side by side have the bits that each has alone.

    activation    an elementwise kernel computes the last elements of a thread's share in another way than the others
    attention     a fused kernel shares rows out to threads, and a row's last bits depend on the thread

Where shares end depends on how many rows there are: so each point goes alone, as it would by itself. Costs a call per
point; the work is the same. Everything else in a pass is a product, which ``library_product`` makes point by point, or
has the same bits wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from device_client.model.linear import LinearRuntime


class PointwiseActivation(nn.Module):
    """An activation function applied in place.

    Args:
        function: Elementwise.
        runtime: Shared by all layers of a model.
    """

    def __init__(self, function: nn.Module, runtime: LinearRuntime) -> None:
        super().__init__()
        self.function = function
        self._runtime = runtime
        self.is_silu = type(function).__name__ in ("SiLU", "SiLUActivation")

    def forward(self, inputs: Tensor) -> Tensor:
        """Overwrite ``inputs`` (points · rows, …) with the function of them, and return it."""
        if inputs.requires_grad:
            return self.function(inputs)  # type: ignore[no-any-return]
        for part in inputs.chunk(self._runtime.values.points):
            if self.is_silu:
                functional.silu(part, inplace=True)
            else:
                part.copy_(self.function(part))
        return inputs


def pointwise_attention(runtime: LinearRuntime) -> AbstractContextManager[object]:
    """Return a context in which torch's attention of (points · rows, heads, columns, width) goes point by point."""
    values = runtime.values
    if values.points == 1 or values.device.type != "cpu":
        return nullcontext()
    return _PointwiseAttention(values.points)


class _PointwiseAttention(TorchFunctionMode):
    def __init__(self, points: int) -> None:
        super().__init__()
        self._points = points

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        does = self._attend if func is functional.scaled_dot_product_attention else func
        return does(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any
    ) -> Tensor:
        parts = [tensor.chunk(self._points) for tensor in (query, key, value)]
        masks: Sequence[Tensor | None] = [attn_mask] * self._points  # none, or one row for all rows
        if attn_mask is not None and attn_mask.shape[0] > 1:
            masks = attn_mask.chunk(self._points)
        attend = functional.scaled_dot_product_attention
        return torch.cat([attend(*of_point, **settings) for of_point in zip(*parts, masks, strict=True)])
