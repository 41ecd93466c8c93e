"""llama.cpp's Q4_0 and Q4_K_M, encoded by llama.cpp's own code as a wheel of PyPI brings it.

    pip download --no-deps xllamacpp==2026.10.11549        # 34 MB, MIT; unzip it anywhere
    LIBRARY = <there>/xllamacpp/xllamacpp.abi3.so          # exports ggml_quantize_chunk

The wheel lacks ``llama_model_quantize``; which type a tensor of a Llama gets in Q4_K_M is written down here after it
(llama.cpp, src/llama-quant.cpp): Q4_K; Q6_K for the value and down projections of about half of the blocks; and where a
row is no multiple of 256, Q5_0 and Q8_0 in their place. The ``gguf`` package decodes. No importance matrix.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

_SUPER_BLOCK = 256
_FOR_OTHER_ROWS = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}


def q4_k_m_kind(name: str, columns: int, block: int, block_count: int) -> Kind:
    """Return the type of a linear weight in a Q4_K_M file.

    Args:
        name: By transformers' rule: ``model.layers.3.mlp.down_proj.weight``.
        columns: Its row length.
        block: Its block's index.
        block_count: How many blocks the network has.
    """
    eighth = block_count // 8
    gets_more = block < eighth or block >= 7 * block_count // 8 or (block - eighth) % 3 == 2
    is_sensitive = name.endswith(("v_proj.weight", "down_proj.weight"))
    kind = Kind.Q6_K if is_sensitive and gets_more else Kind.Q4_K
    return _FOR_OTHER_ROWS[kind] if columns % _SUPER_BLOCK else kind


def q4_k_m_file_bytes(path: Path) -> int:
    """Return the bytes of a GGUF file's Llama, its head tied to its embedding, as Q4_K_M; nothing is encoded."""
    tensors = gguf.GGUFReader(path).tensors
    block_count = 1 + max(int(tensor.name.split(".")[1]) for tensor in tensors if tensor.name.startswith("blk."))
    size = path.stat().st_size
    for tensor in tensors:
        size += _q4_k_m_bytes(tensor, block_count) - tensor.n_bytes
    return size


def _q4_k_m_bytes(tensor: gguf.ReaderTensor, block_count: int) -> int:
    if len(tensor.shape) == 1:
        return int(tensor.n_bytes)
    columns = int(tensor.shape[0])
    if tensor.name == "token_embd.weight":
        kind = _FOR_OTHER_ROWS[Kind.Q6_K] if columns % _SUPER_BLOCK else Kind.Q6_K
    else:
        block, part = tensor.name.split(".")[1:3]
        names = {"attn_v": "v_proj.weight", "ffn_down": "down_proj.weight"}
        kind = q4_k_m_kind(names.get(part, part), columns, int(block), block_count)
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(tensor.n_elements) // per_block * block_bytes


def quantize_by_ggml(library: Path, weight: Tensor, kind: Kind) -> tuple[Tensor, int]:
    """Return the decoded weight, float32, and its size in bits."""
    rows, columns = weight.shape
    source = np.ascontiguousarray(weight.numpy(), np.float32)
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    target = np.zeros((rows, columns // per_block * block_bytes), np.uint8)
    written = _ggml(library).ggml_quantize_chunk(
        int(kind), source.ctypes.data, target.ctypes.data, 0, rows, columns, None
    )
    if written != target.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name}; expected {target.nbytes}")
    return torch.from_numpy(gguf.quants.dequantize(target, kind).astype(np.float32)), 8 * target.nbytes


@functools.cache
def _ggml(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    return loaded
