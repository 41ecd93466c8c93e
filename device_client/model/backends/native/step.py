"""A token's whole way through a decoder as the kernels see it: see ``kernels/step.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from device_client.model.backends.native.library import KernelLibrary, Product, address_of, product_of
from device_client.model.backends.native.weight import NativeWeight
from device_client.model.backends.token_kernels import BlockParts, DecoderParts, Factor, KeptHeads, NormPart


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, Product) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
    )  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.POINTER(_Block)), ("count", ctypes.c_int64), ("norm", _Norm),
        ("head", ctypes.POINTER(Product)),
        *((name, ctypes.c_void_p) for name in ("hidden", "cosines", "sines")),
        *((name, ctypes.c_int64) for name in ("heads", "key_heads", "size", "capacity", "first", "position")),
        ("scale", ctypes.c_float),
    )  # fmt: skip


class NativeStep:
    """Computes one token in float32 with one call.

    Args:
        library: The kernels that packed all weights.
        parts: What it computes.
    """

    def __init__(self, library: KernelLibrary, parts: DecoderParts) -> None:
        self._library, self._parts = library, parts
        self._products: list[Product] = []  # what addresses in the blocks are of
        self._blocks = (_Block * len(parts.blocks))(*(self._block(block) for block in parts.blocks))
        self._logits: Tensor | None = None
        head = None
        if parts.head is not None and isinstance(parts.head.weight, NativeWeight):
            self._logits = torch.empty(parts.head.weight.shape[0])
            head = ctypes.pointer(self._product(parts.head, self._logits))
        first = parts.blocks[0]
        heads, key_heads = (factor.weight.shape[0] // parts.head_size for factor in (first.query, first.key))
        self._step = _Step(
            self._blocks, len(parts.blocks), _norm(parts.norm), head, None, None, None, heads, key_heads,
            parts.head_size, 0, 0, 0, parts.scale,
        )  # fmt: skip

    def keep(self, kept: Sequence[KeptHeads]) -> None:
        """Attend to these keys and values of each block from now on."""
        self._kept = list(kept)
        for block, heads in zip(self._blocks, kept, strict=True):
            block.keys, block.values = heads.keys.data_ptr(), heads.values.data_ptr()
        self._step.capacity = kept[0].keys.shape[1]

    def __call__(self, hidden: Tensor, place: KeptHeads, cosines: Tensor, sines: Tensor) -> Tensor | None:
        """Return the head's products, or None without a packed head."""
        step = self._step
        step.hidden, step.cosines, step.sines = hidden.data_ptr(), cosines.data_ptr(), sines.data_ptr()
        step.first, step.position = place.first, place.position
        self._library.step(ctypes.addressof(step))
        return self._logits

    def _block(self, parts: BlockParts) -> _Block:
        norms = (parts.attention_norm, parts.query_norm, parts.key_norm, parts.mlp_norm)
        return _Block(*map(_norm, norms), *(self._product(factor, None) for factor in parts.factors), None, None)

    def _product(self, factor: Factor, out: Tensor | None) -> Product:
        struct = cast(NativeWeight, factor.weight).struct()
        self._products.append(product_of(struct, factor.values, factor.bias, out))
        return self._products[-1]


def _norm(part: NormPart) -> _Norm:
    return _Norm(address_of(part.weight), part.epsilon)
