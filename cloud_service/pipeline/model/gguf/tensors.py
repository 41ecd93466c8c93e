"""The tensors of a GGUF file under the names and in the arrangement of transformers, a piece at a time.

llama.cpp arranges some tensors in its own way; each of these is undone:

    llama             rows of queries and keys: pairs of rotary numbers side by side → halves apart, head by head
    gemma2, gemma3    weights of norms: 1 + w → w
    gpt2              linear weights: (out, in) → (in, out), as Conv1D has them

Names come from the table of the package ``gguf``. A piece is some million values, so that no tensor is ever in memory
as float32, the embedding of the largest vocabulary least of all. Only gpt2's transposed weights are taken whole.
Knows nothing about configuration keys and tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map

from cloud_service.pipeline.model.gguf.configuration import ROPE_FACTORS
from cloud_service.pipeline.model.gguf.header import GgufHeader, GgufTensor, refusal

_PIECE_ELEMENTS = 1 << 22
_IGNORED_ENDINGS = ("attn_rot_embd.weight", "rotary_emb.inv_freq", ".attn.bias")
"""Ends of the names of tensors that are computed from the configuration."""

_CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of the file and what it is in transformers.

    Attributes:
        name: Its name in the file.
        stored: Where it lies in the file.
        shape: Its shape in transformers.
        heads: Number of heads whose rows are rearranged; 0 where none are.
        offset: What is added to every value.
        is_transposed: Whether rows and columns change places.
    """

    name: str
    stored: GgufTensor
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0
    is_transposed: bool = False

    @property
    def dtype(self) -> Literal["F32", "F16"]:
        """What the tensor is written as: float32 as it is, everything else in float16."""
        return "F32" if self.stored.type == GGMLQuantizationType.F32 else "F16"

    @property
    def size(self) -> int:
        """Bytes of the tensor as it is written."""
        return prod(self.shape) * (4 if self.dtype == "F32" else 2)


def source_tensors(
    header: GgufHeader, config: Mapping[str, Any], names: Sequence[str], architecture: str
) -> dict[str, SourceTensor]:
    """Return the tensors of the file by their names in transformers, in the network's order.

    Args:
        header: Of the file.
        config: Content of config.json.
        names: Names of the network's parameters; a tied one occurs once.
        architecture: Value of ``general.architecture``.

    Raises:
        UnsupportedModel: A parameter is not in the file, or a tensor of the file has no place.
    """
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, header.number(f"{architecture}.block_count") or 0)
    found: dict[str, SourceTensor] = {}
    for name in names:
        base, dot, ending = name.rpartition(".")
        known = table.get_name(base)
        key = f"{known}{dot}{ending}"
        if known is None or key not in header.tensors:
            raise refusal(header.name, f"has no tensor for {name} ({key if known else 'unknown'})", "a whole model")
        found[name] = _source(key, header.tensors[key], config, architecture)
    places = {source.name for source in found.values()}
    strangers = [key for key in header.tensors if key not in places and key != ROPE_FACTORS]
    if unknown := [key for key in strangers if not key.endswith(_IGNORED_ENDINGS)]:
        raise refusal(
            header.name,
            f"has the tensor {unknown[0]!r}, which {config['model_type']} has no place for ({len(unknown)} like it)",
            "a model of one of the families that are served",
        )
    return found


def _source(key: str, stored: GgufTensor, config: Mapping[str, Any], architecture: str) -> SourceTensor:
    heads, offset, is_transposed = 0, 0.0, False
    if architecture == "llama" and ".attn_q." in key:
        heads = int(config["num_attention_heads"])
    elif architecture == "llama" and ".attn_k." in key:
        heads = int(config["num_key_value_heads"])
    elif architecture in ("gemma2", "gemma3") and key.endswith("norm.weight"):
        offset = -1.0
    elif architecture == "gpt2":
        is_transposed = key.endswith(_CONV1D)
    shape = tuple(reversed(stored.shape)) if is_transposed else stored.shape
    return SourceTensor(key, stored, shape, heads, offset, is_transposed)


def read_pieces(stream: BinaryIO, source: SourceTensor, file_name: str) -> Iterator[bytes]:
    """Yield a tensor's bytes as they are written, in order.

    Args:
        stream: The GGUF file.
        source: Which tensor.
        file_name: The file's name, for messages.

    Raises:
        UnsupportedModel: The file is shorter than it was, or a value is not finite in what it is written as.
    """
    stored = source.stored
    rows = prod(stored.shape[:-1])
    row_bytes = stored.size // rows
    if source.heads and rows % (2 * source.heads):
        raise refusal(file_name, f"has {rows} rows in {source.name!r}", f"{source.heads} heads of an even width")
    unit = rows if source.is_transposed else rows // source.heads if source.heads else 1
    step = max(1, _PIECE_ELEMENTS // (unit * stored.shape[-1])) * unit
    stream.seek(stored.offset)
    for begin in range(0, rows, step):
        count = min(step, rows - begin)
        data = stream.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise refusal(file_name, f"ends within the tensor {source.name!r}", "a file that nobody changes")
        yield _written(_arranged(_values(data, count, stored), source), source, file_name)


def _values(data: bytes, rows: int, stored: GgufTensor) -> FloatArray:
    blocks = np.frombuffer(data, np.uint8).reshape(rows, -1)
    with np.errstate(all="ignore"):  # what is not finite is found later, and refused by name
        return dequantize(blocks, stored.type).astype(np.float32, copy=False).reshape(rows, stored.shape[-1])


def in_order_of_transformers(rows: npt.NDArray[Any], source: SourceTensor) -> npt.NDArray[Any]:
    """Return the rows of whole heads, (rows, anything), in the order that transformers has them in."""
    if not source.heads:
        return rows
    unit = prod(source.stored.shape[:-1]) // source.heads
    return rows.reshape(len(rows) // unit, unit // 2, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _arranged(values: FloatArray, source: SourceTensor) -> FloatArray:
    if source.heads:
        return in_order_of_transformers(values, source)
    if source.is_transposed:
        return values.T
    return values + np.float32(source.offset) if source.offset else values


def _written(values: FloatArray, source: SourceTensor, file_name: str) -> bytes:
    with np.errstate(over="ignore", invalid="ignore"):
        written = values.astype("<f4" if source.dtype == "F32" else "<f2", copy=False)
    if not np.isfinite(written).all():
        finite = values[np.isfinite(values)]
        largest = float(np.abs(finite).max()) if len(finite) == values.size else float("nan")
        raise refusal(
            file_name,
            f"holds {largest:g} in the tensor {source.name!r}",
            "finite weights within ±65504, the range of float16",
        )
    return written.tobytes()
