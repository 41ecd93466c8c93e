"""The 4-bit codes that a GGUF file has, as they are: no weight is rounded a second time.

    Q4_1    w = d · code + m            scale d, bias m
    Q4_0    w = d · (code − 8)          scale d, bias −8 d; d may be negative

Both have 32 columns per group, d and m in float16, and in 16 bytes the codes of columns 0 … 15 (low halves) and 16 … 31
(high halves). What comes of them decodes to what the file means, in float32, bit for bit; −8 d is exact wherever it is
finite. Rows stand as transformers has them. Costs the codes of one weight. Knows nothing about Fisher values and masks.
"""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.gguf.checkpoint import GgufFile
from cloud_service.pipeline.model.gguf.header import refusal
from cloud_service.pipeline.model.gguf.tensors import SourceTensor, in_order_of_transformers
from shared.quantization.codec import QuantizedTensor
from shared.quantization.packing import pack_codes

GROUP_SIZE = 32
_HEADER_BYTES = {GGMLQuantizationType.Q4_0: 2, GGMLQuantizationType.Q4_1: 4}


class SourceCodes:
    """The weights of a GGUF file that lie in 4-bit codes.

    Args:
        file: The file, whose header was read.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._sources = {
            name: source
            for name, source in file.tensors.items()
            if source.stored.type in _HEADER_BYTES and not source.is_transposed and not source.offset
        }

    def type_of(self, name: str) -> str | None:
        """Return ``Q4_0`` or ``Q4_1``; None where a weight does not lie in 4-bit codes along its rows."""
        source = self._sources.get(name)
        return None if source is None else source.stored.type.name

    def read(self, name: str, device: str) -> QuantizedTensor | None:
        """Return a weight's codes, scales and biases as the file has them, on a device; None where ``type_of`` is.

        Raises:
            UnsupportedModel: The file was cut off, or a scale or bias is not finite.
        """
        source = self._sources.get(name)
        if source is None:
            return None
        with ContainedFolder(self._file.folder).open(self._file.name) as opened, opened.stream() as stream:
            stream.seek(source.stored.offset)
            data = stream.read(source.stored.size)
        if len(data) != source.stored.size:
            raise refusal(self._file.name, f"ends within the tensor {source.name!r}", "a file that nobody changes")
        return _as_stored(np.frombuffer(data, np.uint8), source, self._file.name, device)


def _as_stored(data: npt.NDArray[np.uint8], source: SourceTensor, file_name: str, device: str) -> QuantizedTensor:
    rows, columns = prod(source.shape[:-1]), source.shape[-1]
    head = _HEADER_BYTES[source.stored.type]
    data = in_order_of_transformers(data.reshape(rows, -1), source)
    blocks = data.reshape(rows, columns // GROUP_SIZE, head + GROUP_SIZE // 2)
    numbers = np.ascontiguousarray(blocks[:, :, :head]).view("<f2")
    scale = numbers[:, :, 0]
    with np.errstate(over="ignore"):
        bias = numbers[:, :, 1] if head > 2 else scale * np.float16(-8)
    if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
        raise refusal(file_name, f"has a scale beyond float16 in the tensor {source.name!r}", "finite weights")
    halves = blocks[:, :, head:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(rows, columns)
    packed = pack_codes(torch.from_numpy(codes), 4).to(device)
    scales, biases = (torch.from_numpy(part.astype(np.float16)).to(device) for part in (scale, bias))
    return QuantizedTensor(packed, columns, 4, scale=scales, bias=biases, group_size=GROUP_SIZE)
