"""The C interface of kernels.cpp, and nothing else: structures, formats, calls.

Pointers are taken from tensors that the caller keeps alive during a call; a call returns when its work is done.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from device_client.model.backends.backend import PackedWeight
from shared.quantization.codec import QuantizedTensor

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Compute dtype → its number in kernels.cpp."""


class _Weight(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "lut", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "lut_rows", "group_size", "groups")),
        ("bits", ctypes.c_int32),
    )


class _Sparse(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_starts", "indices", "values")),
        ("first_row", ctypes.c_int64),
    )


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
        for call in (self._dequantize, self._write_sparse, self._linear_small):
            call.restype = None

    def dequantize(self, packed: PackedWeight, values: Tensor | None, out: Tensor) -> None:
        """Decode to ``out`` (out_features, in_features), contiguous; ``values``, of its format, are written over it."""
        weight = _describe(packed.quantized)
        sparse = None if values is None else ctypes.byref(_describe_sparse(packed, values))
        threads = torch.get_num_threads()
        self._dequantize(ctypes.byref(weight), sparse, out.data_ptr(), FORMATS[out.dtype], threads)

    def write_sparse(self, packed: PackedWeight, values: Tensor, out: Tensor) -> None:
        """Overwrite the sensitive positions of ``out`` (out_features, in_features), of the format of ``values``."""
        weight, sparse = _describe(packed.quantized), _describe_sparse(packed, values)
        threads = torch.get_num_threads()
        self._write_sparse(ctypes.byref(weight), ctypes.byref(sparse), out.data_ptr(), FORMATS[out.dtype], threads)

    def linear_small(
        self, inputs: Tensor, packed: PackedWeight, values: Tensor, bias: Tensor | None, out: Tensor
    ) -> None:
        """Multiply: inputs (tokens, in_features) to out (tokens, out_features), all contiguous and of one format."""
        weight = _describe(packed.quantized)
        sparse = _describe_sparse(packed, values)
        self._linear_small(
            ctypes.byref(weight), ctypes.byref(sparse), inputs.data_ptr(), _address(bias), out.data_ptr(),
            inputs.shape[0], FORMATS[inputs.dtype], torch.get_num_threads(),
        )  # fmt: skip


def _describe(tensor: QuantizedTensor) -> _Weight:
    rows, columns = tensor.shape
    groups = 0 if tensor.group_size is None else -(-columns // tensor.group_size)
    lut_rows = 0 if tensor.lut is None else tensor.lut.shape[0]
    return _Weight(
        tensor.codes.data_ptr(), _address(tensor.lut), _address(tensor.scale), _address(tensor.bias),
        rows, columns, tensor.codes.shape[1], lut_rows, tensor.group_size or 0, groups, tensor.bits,
    )  # fmt: skip


def _describe_sparse(packed: PackedWeight, values: Tensor) -> _Sparse:
    return _Sparse(packed.row_starts.data_ptr(), packed.indices.data_ptr(), values.data_ptr(), packed.first_row)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
