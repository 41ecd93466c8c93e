"""The C interface of the compiled kernels, and nothing else: structures, formats, calls.

Pointers are taken from tensors that the caller keeps alive during a call; a call returns when its work is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.panel_layout import placement_lists
from device_client.model.backends.token_kernels import Factor, KeptHeads, TokenHeads
from device_client.model.points import PerturbedPoint
from shared.normal_quantile import COEFFICIENTS
from shared.quantization.codec import QuantizedTensor

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Compute dtype → its number in numbers.h."""

_NONE = torch.empty(0)


class _Weight(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "lut", "scale", "bias", "largest")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "lut_rows", "group_size", "groups")),
        ("bits", ctypes.c_int32),
        ("in_panels", ctypes.c_int32),
    )


class _Sparse(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_starts", "indices", "values", "replaced")),
        ("first_row", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the sensitive values of a weight in panels go in tiles: lists by slice of columns and panel (at_points.h).

    Attributes:
        starts: int32 (slices · panels + 1,): where each list begins.
        order: int32 (k,), which value.
        places: int32 (k,), where it goes.
    """

    starts: Tensor
    order: Tensor
    places: Tensor


class _Placement(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("starts", "order", "places"))


class _Product(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.POINTER(_Weight)), ("sparse", ctypes.POINTER(_Sparse)),
        ("bias", ctypes.c_void_p), ("out", ctypes.c_void_p),
    )  # fmt: skip


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "key", "value", "cosines", "sines", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("heads", "key_heads", "size", "capacity", "first", "position")),
        ("scale", ctypes.c_float),
    )


class _PerturbedPoint(ctypes.Structure):
    _fields_ = (
        ("theta", ctypes.c_void_p), ("z", ctypes.c_void_p), ("s", ctypes.c_float), ("out", ctypes.c_void_p),
    )  # fmt: skip


class Described:
    """A weight as the kernels see it: good for as long as the weight lives, and for one call at a time.

    Attributes:
        packed: The weight.
        rows: out_features.
        weight: Its structure.
        largest: float32 (out_features,), the largest value that a code of each row can stand for, without its sign; in
            panels only.
    """

    def __init__(self, packed: PackedWeight) -> None:
        tensor = packed.quantized
        self.largest = _largest_of_each_row(tensor) if packed.in_panels else None
        self.packed = packed  # keeps alive what the addresses below are of
        rows, columns = tensor.shape
        groups = 0 if tensor.group_size is None else -(-columns // tensor.group_size)
        lut_rows = 0 if tensor.lut is None else tensor.lut.shape[0]
        self.rows = rows
        self.weight = ctypes.pointer(_Weight(
            tensor.codes.data_ptr(), _address(tensor.lut), _address(tensor.scale), _address(tensor.bias),
            _address(self.largest), rows, columns, tensor.codes.shape[1], lut_rows, tensor.group_size or 0, groups,
            tensor.bits, int(packed.in_panels),
        ))  # fmt: skip
        self._values = _Sparse(
            packed.row_starts.data_ptr(), packed.indices.data_ptr(), None, _address(packed.replaced), packed.first_row
        )
        self._sparse = ctypes.pointer(self._values)

    def sparse(self, values: Tensor | None) -> Any:
        """Return its sensitive values' places with these values, (k,) of the whole weight, or None without any."""
        if values is None:
            return None
        self._values.values = values.data_ptr()
        return self._sparse


def _largest_of_each_row(quantized: QuantizedTensor) -> Tensor:
    """Return the largest value that any code of each row can stand for, without its sign, float32 (out_features,)."""
    rows, _ = quantized.shape
    table = torch.arange(1 << quantized.bits)[None] if quantized.lut is None else quantized.lut
    ends = torch.stack(table.float().aminmax(dim=1)).expand(2, rows)[..., None]  # a group's values lie between them
    if quantized.scale is not None:
        ends = ends * quantized.scale.float()
    if quantized.bias is not None:
        ends = ends + quantized.bias.float()
    return ends.abs().amax(dim=(0, 2))


def described(weight: PackedWeight) -> Described:
    """Return a weight as the kernels see it; some rows, or a weight with other tensors, are described anew."""
    kept = weight.described
    is_same = kept is not None and kept.packed.quantized is weight.quantized and kept.packed.indices is weight.indices
    return kept if is_same else Described(weight)


class Products:
    """Several weights of the same inputs as the kernels see them, and where their products go.

    Args:
        factors: The weights and their sensitive values.
        outputs: Compute dtype (out_features,) each.
    """

    def __init__(self, factors: Sequence[Factor], outputs: Sequence[Tensor]) -> None:
        products = [self._product(factor, out) for factor, out in zip(factors, outputs, strict=True)]
        self._kept = (factors, outputs, products)  # what the addresses below are of
        self.array = (_Product * len(factors))(*products)

    @staticmethod
    def _product(factor: Factor, out: Tensor) -> _Product:
        seen = described(factor.weight)
        sparse = _Sparse.from_buffer_copy(seen.sparse(factor.values).contents)
        return _Product(seen.weight, ctypes.pointer(sparse), _address(factor.bias), out.data_ptr())


class KernelLibrary:
    """The compiled kernels.

    Args:
        path: The shared library.

    Raises:
        OSError: It cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, number, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._dequantize = library.zo_dequantize
        self._dequantize.argtypes = (pointer, pointer, pointer, number, number)
        self._write_sparse = library.zo_write_sparse
        self._write_sparse.argtypes = (pointer, pointer, pointer, number, number)
        self._linear_small = library.zo_linear_small
        self._linear_small.argtypes = (pointer, pointer, pointer, pointer, pointer, long, number, number)
        self._linear_side_by_side = library.zo_linear_side_by_side
        self._linear_side_by_side.argtypes = (pointer, long, pointer, number, number)
        self._norm = library.zo_norm
        self._norm.argtypes = (pointer, pointer, pointer, long, long, ctypes.c_float, number)
        self._attend = library.zo_attend
        self._attend.argtypes = (pointer, number, number)
        self._linear_at_points = library.zo_linear_at_points
        self._linear_at_points.argtypes = (*[pointer] * 6, long, long, pointer, number)
        self._sort_values = library.zo_sort_values
        self._sort_values.argtypes = (pointer,) * 5
        self._draw_normal = library.zo_draw_normal
        self._draw_normal.argtypes = (*[ctypes.c_uint64] * 3, pointer, pointer, long)
        self._write_points = library.zo_write_points
        self._write_points.argtypes = (pointer, long, long, number, number)
        for call in (
            self._dequantize, self._write_sparse, self._linear_small, self._linear_at_points, self._sort_values,
            self._draw_normal, self._linear_side_by_side, self._norm, self._attend,
            self._write_points,
        ):  # fmt: skip
            call.restype = None
        self._fits_panels = library.zo_fits_panels
        self._fits_panels.argtypes = (pointer,)
        self._fits_panels.restype = number

    def fits_panels(self, quantized: QuantizedTensor) -> bool:
        """Return whether bfloat16 products with this weight can be made on the CPU's matrix unit."""
        return bool(self._fits_panels(Described(PackedWeight(quantized, _NONE, _NONE)).weight))

    def draw_normal(self, seed: int, step: int, query: int, out: Tensor) -> None:
        """Draw ``perturbation(seed, step, query, k)`` to ``out``, float32 (k,), contiguous, on the host.

        Raises:
            ValueError: ``out`` is not that, or the position lies outside [0, 2^64).
        """
        if out.dtype != torch.float32 or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"out is {out.dtype} on {out.device}; needed contiguous float32 on the host")
        if not all(0 <= word < 1 << 64 for word in (seed, step, query)):
            raise ValueError(f"({seed}, {step}, {query}) does not lie in [0, 2^64)")
        self._draw_normal(seed, step, query, COEFFICIENTS.ctypes.data, out.data_ptr(), out.numel())

    def write_points(self, points: Sequence[PerturbedPoint], out: Tensor) -> None:
        """Write θ + s·z of every point to ``out`` (points, k), rounded once; all contiguous on the host."""
        seen = (_PerturbedPoint * len(points))(*(
            _PerturbedPoint(point.theta.data_ptr(), point.z.data_ptr(), point.signed_epsilon, values.data_ptr())
            for point, values in zip(points, out, strict=True)
        ))  # fmt: skip
        self._write_points(seen, len(points), out.shape[1], FORMATS[out.dtype], torch.get_num_threads())

    def dequantize(self, weight: Described, values: Tensor | None, out: Tensor) -> None:
        """Decode to ``out`` (out_features, in_features), contiguous; ``values``, of its format, are written over it."""
        threads = torch.get_num_threads()
        self._dequantize(weight.weight, weight.sparse(values), out.data_ptr(), FORMATS[out.dtype], threads)

    def write_sparse(self, weight: Described, values: Tensor, out: Tensor) -> None:
        """Overwrite the sensitive positions of ``out`` (out_features, in_features), of the format of ``values``."""
        threads = torch.get_num_threads()
        self._write_sparse(weight.weight, weight.sparse(values), out.data_ptr(), FORMATS[out.dtype], threads)

    def linear_small(self, inputs: Tensor, weight: Described, values: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Multiply: inputs (…, in_features) to out (…, out_features), all contiguous and of one format."""
        self._linear_small(
            weight.weight, weight.sparse(values), inputs.data_ptr(), _address(bias), out.data_ptr(),
            out.numel() // weight.rows, FORMATS[inputs.dtype], torch.get_num_threads(),
        )  # fmt: skip

    def multiply(self, products: Products, inputs: Tensor) -> None:
        """Multiply one token's inputs (in_features,) with several weights."""
        self._linear_side_by_side(
            products.array, len(products.array), inputs.data_ptr(), FORMATS[inputs.dtype], torch.get_num_threads()
        )

    def norm(self, inputs: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """Norm every row of inputs (…, columns) to ``out``, all contiguous and of one format."""
        columns = inputs.shape[-1]
        self._norm(
            inputs.data_ptr(), weight.data_ptr(), out.data_ptr(), inputs.numel() // columns, columns, epsilon,
            FORMATS[inputs.dtype],
        )  # fmt: skip

    def attend(self, token: TokenHeads, kept: KeptHeads, scale: float) -> None:
        """Overwrite the token's query with what it attends to; all contiguous and of one format."""
        (heads, size), (key_heads, capacity, _) = token.query.shape, kept.keys.shape
        attention = _Attention(
            token.query.data_ptr(), token.key.data_ptr(), token.value.data_ptr(), token.cosines.data_ptr(),
            token.sines.data_ptr(), kept.keys.data_ptr(), kept.values.data_ptr(),
            heads, key_heads, size, capacity, kept.first, kept.position, scale,
        )  # fmt: skip
        self._attend(ctypes.byref(attention), FORMATS[token.query.dtype], torch.get_num_threads())

    def placement(self, packed: PackedWeight) -> Placement:
        """Return where the sensitive values of a weight in panels go in tiles."""
        lists, count = placement_lists(packed.shape), packed.indices.numel()
        found = Placement(*(torch.empty(size, dtype=torch.int32) for size in (lists + 1, count, count)))
        weight = described(packed)
        addresses = (tensor.data_ptr() for tensor in (found.starts, found.order, found.places))
        self._sort_values(weight.weight, weight.sparse(packed.indices), *addresses)
        return found

    def linear_at_points(
        self, inputs: Tensor, weight: Described, placement: Placement, values: Sequence[Tensor],
        bias: Tensor | None, out: Tensor, scratch: Tensor,
    ) -> None:  # fmt: skip
        """Multiply on the matrix unit, with a weight whose codes lie in panels; all bfloat16 and contiguous.

        Args:
            inputs: (points, tokens, in_features).
            weight: The weight.
            placement: Of its sensitive values.
            values: (k,) each, of every point.
            bias: (out_features,), or None.
            out: (points, tokens, out_features).
            scratch: At least ``PASS_TOKENS`` · in_features values.
        """
        where = _Placement(placement.starts.data_ptr(), placement.order.data_ptr(), placement.places.data_ptr())
        addresses = (ctypes.c_void_p * len(values))(*(each.data_ptr() for each in values))
        self._linear_at_points(
            weight.weight, ctypes.byref(where), inputs.data_ptr(), addresses, _address(bias), out.data_ptr(),
            inputs.shape[0], inputs.shape[1], scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
