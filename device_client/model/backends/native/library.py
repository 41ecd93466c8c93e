"""The C interface of the compiled kernels: structures, formats, calls.

Pointers are taken from tensors that the caller keeps alive during a call; a call returns when its work is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from device_client.model.backends.native.build import BuildFailed, built_library
from device_client.model.backends.token_kernels import KeptHeads, TokenHeads
from device_client.model.out_of_memory import is_out_of_memory
from device_client.model.points import PerturbedPoint
from shared.normal_quantile import COEFFICIENTS
from shared.quantization.codec import QuantizedTensor

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Compute dtype → its number in numbers.h."""


class _Weight(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "lut", "scale", "bias", "largest")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "lut_rows", "group_size", "groups")),
        ("bits", ctypes.c_int32),
    )


class _Sparse(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_starts", "indices", "values", "replaced")),
        ("first_row", ctypes.c_int64),
    )


class Product(ctypes.Structure):
    """A weight that is multiplied, as the kernels see it; see ``product_of``."""

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


class WeightStruct:
    """Some rows of a weight as the kernels see them, for one call at a time; holds the tensors that it points to.

    Args:
        quantized: The dense part of these rows.
        row_starts: int32 (rows + 1,), where the values of each row begin; None where there are none.
        positions: int32 (k,), where those of the whole weight stand; likewise.
        replaced: Compute dtype (k,), what the codes there stand for; None where no kernel asks for it.
        first_row: Where these rows begin in the whole weight.
        largest: float32 (rows,), the largest value of any code of each row, without its sign; likewise.
    """

    def __init__(
        self, quantized: QuantizedTensor, row_starts: Tensor | None = None, positions: Tensor | None = None,
        replaced: Tensor | None = None, first_row: int = 0, largest: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._kept = (quantized, row_starts, positions, replaced, largest)
        self.rows, columns = quantized.shape
        groups = 0 if quantized.group_size is None else -(-columns // quantized.group_size)
        lut_rows = 0 if quantized.lut is None else quantized.lut.shape[0]
        parts = (quantized.codes, quantized.lut, quantized.scale, quantized.bias, largest)
        self.weight = ctypes.pointer(_Weight(
            *map(address_of, parts), self.rows, columns, quantized.codes.shape[1], lut_rows, quantized.group_size or 0,
            groups, quantized.bits,
        ))  # fmt: skip
        self._values = _Sparse(address_of(row_starts), address_of(positions), None, address_of(replaced), first_row)
        self._sparse = ctypes.pointer(self._values)

    def sparse(self, values: Tensor | None) -> Any:
        """Return the places with these values, (k,) of the whole weight, or None without any."""
        if values is None:
            return None
        self._values.values = values.data_ptr()
        return self._sparse


def product_of(struct: WeightStruct, values: Tensor, bias: Tensor | None, out: Tensor | None) -> Product:
    """Return a product for many calls; the caller keeps it and the tensors, of which it holds addresses.

    Args:
        struct: The weight.
        values: Its sensitive values (k,), read where they lie now.
        bias: (rows,), or None.
        out: Where the product goes (rows,); None where the kernel knows.
    """
    sparse = _Sparse.from_buffer_copy(struct.sparse(values).contents)
    return Product(struct.weight, ctypes.pointer(sparse), address_of(bias), address_of(out))


class ProductList:
    """Products of one token with several weights, for many calls.

    Args:
        factors: Each weight, its sensitive values (k,), its bias (rows,) or None, and where its product goes (rows,).
    """

    def __init__(self, factors: Sequence[tuple[WeightStruct, Tensor, Tensor | None, Tensor]]) -> None:
        products = [product_of(*factor) for factor in factors]
        self._kept = (factors, products)  # what the addresses in the array are of
        self.array = (Product * len(products))(*products)


class KernelLibrary:
    """The compiled kernels, for weights whose codes lie row by row.

    Args:
        path: The shared library.

    Attributes:
        path: The shared library.

    Raises:
        OSError: It cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        pointer, number, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._functions = ctypes.CDLL(str(path))
        self._dequantize = self._function("zo_dequantize", pointer, pointer, pointer, number, number)
        self._write_sparse = self._function("zo_write_sparse", pointer, pointer, pointer, number, number)
        self._linear_small = self._function("zo_linear_small", *[pointer] * 5, long, number, number)
        self._add_sparse_products = self._function("zo_add_sparse_products", *[pointer] * 4, long, number)
        self._linear_side_by_side = self._function("zo_linear_side_by_side", pointer, long, pointer, number, number)
        self._norm = self._function("zo_norm", pointer, pointer, pointer, long, long, ctypes.c_float, number)
        self._attend = self._function("zo_attend", pointer, number, number)
        self._step = self._function("zo_step", pointer, number)
        self._draw_normal = self._function("zo_draw_normal", *[ctypes.c_uint64] * 3, pointer, pointer, long)
        self._write_points = self._function("zo_write_points", pointer, long, long, number, number)

    def _function(self, name: str, *arguments: Any) -> Any:
        function = self._functions[name]
        function.argtypes, function.restype = arguments, None
        return function

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

    def dequantize(self, weight: WeightStruct, values: Tensor | None, out: Tensor) -> None:
        """Decode to ``out`` (out_features, in_features), contiguous; ``values``, of its format, are written over it."""
        threads = torch.get_num_threads()
        self._dequantize(weight.weight, weight.sparse(values), out.data_ptr(), FORMATS[out.dtype], threads)

    def write_sparse(self, weight: WeightStruct, values: Tensor, out: Tensor) -> None:
        """Overwrite the sensitive positions of ``out`` (out_features, in_features), of the format of ``values``."""
        threads = torch.get_num_threads()
        self._write_sparse(weight.weight, weight.sparse(values), out.data_ptr(), FORMATS[out.dtype], threads)

    def linear_small(
        self, inputs: Tensor, weight: WeightStruct, values: Tensor, bias: Tensor | None, out: Tensor
    ) -> None:
        """Multiply: inputs (…, in_features) to out (…, out_features), all contiguous and of one format."""
        self._linear_small(
            weight.weight, weight.sparse(values), inputs.data_ptr(), address_of(bias), out.data_ptr(),
            out.numel() // weight.rows, FORMATS[inputs.dtype], torch.get_num_threads(),
        )  # fmt: skip

    def add_sparse_products(self, weight: WeightStruct, values: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Add the sensitive values' share of x Wᵀ to out (tokens, out_features); all contiguous and in float32."""
        self._add_sparse_products(
            weight.weight, weight.sparse(values), inputs.data_ptr(), out.data_ptr(), len(inputs),
            torch.get_num_threads(),
        )  # fmt: skip

    def linear_side_by_side(self, products: ProductList, inputs: Tensor) -> None:
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

    def step(self, address: int) -> None:
        """Take the step of a token that is described there; see ``native.step``."""
        self._step(address, torch.get_num_threads())


def address_of(tensor: Tensor | None) -> int | None:
    """Return where a tensor begins, for a kernel; None for none."""
    return None if tensor is None else tensor.data_ptr()


def load_kernels(folder: Path | None, announce: Callable[[str], None]) -> KernelLibrary:
    """Return the compiled kernels, compiling them where that has not happened yet.

    Args:
        folder: Where compiled kernels are kept.
        announce: Receives a line before a compilation begins.

    Raises:
        BuildFailed: They cannot be compiled or loaded here.
    """
    if folder is None:
        raise BuildFailed("there is no folder for the compiled kernels")
    try:
        return KernelLibrary(built_library(folder, announce))
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise BuildFailed(str(error)) from error
