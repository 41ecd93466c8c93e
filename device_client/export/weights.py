"""The weights that a bundle and a run's values amount to, decoded, a few megabytes at a time.

    W = dequantise(codes);  W[index] = value                        (Equation 26); of tuned blocks the run's values
    W + (α/r) · B A                                                 where the run tuned low-rank factors

Everything is computed in float32, with the bits that the run itself computed with on a CPU; whoever writes the weights
rounds them once. Costs a piece of a weight beside its codes. Knows nothing about file formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from device_client.planning.methods import LowRankFactors, PrefixStates
from device_client.planning.tuned_blocks import entries_of
from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.bundle.read import SensitiveTensors
from shared.bundle.tensor_header import TensorSlot, read_header, read_pieces, read_tensor
from shared.errors import UnsupportedModel
from shared.quantization.codec import QuantizedTensor, dequantize

if TYPE_CHECKING:
    from device_client.export.subject import Subject, TunedRun

_PIECE_VALUES = 1 << 21


class DecodedWeights:
    """Every parameter of a subject, in float32.

    Attributes:
        shapes: Parameter → shape; of a linear weight (out_features, in_features), as bundles have them.

    Args:
        subject: A bundle, with a run or without.

    Raises:
        UnsupportedModel: The run tuned keys and values in front of texts, which are no weights.
    """

    def __init__(self, subject: Subject) -> None:
        config = subject.bundle.config
        if subject.tuned is not None and isinstance(subject.tuned.part.method, PrefixStates):
            raise UnsupportedModel(
                f"run {subject.tuned.directory.name} tuned a prefix: keys and values in front of every text",
                needed="a run of --method sparse or lora, whose values become weights",
                next_step="export it with --to delta, or use it here with zo-device generate --run",
            )
        self._bundle, self._sensitive = subject.bundle, subject.bundle.open_sensitive()
        self._quantized = {entry.name: entry for entry in config.tensors}
        self._dense = {entry.name: entry for entry in config.dense_parameters}
        self._added = _LowRankUpdates(subject)
        self._values = _sparse_values(subject)
        self._headers: dict[str, dict[str, TensorSlot]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {
            **{name: tuple(entry.shape) for name, entry in self._quantized.items()},
            **{name: tuple(entry.shape) for name, entry in self._dense.items()},
        }

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield a parameter's rows in order, float32 (rows, …); a vector's values in float32 (n,)."""
        if name in self._dense:
            yield from self._dense_pieces(self._dense[name])
        else:
            yield from self._quantized_pieces(self._quantized[name])

    def whole(self, name: str) -> Tensor:
        """Return a parameter, float32."""
        return torch.cat(list(self.pieces(name)))

    def _dense_pieces(self, entry: DenseEntry) -> Iterator[Tensor]:
        columns = math.prod(entry.shape[1:])
        rows_at_once = max(1, _PIECE_VALUES // columns)
        slot = self._slots(entry.blob)[entry.name]
        for piece in read_pieces(self._bundle.path(entry.blob), slot, rows_at_once * columns * 2):
            yield torch.from_numpy(piece.astype(np.float32)).view(-1, *entry.shape[1:])

    def _quantized_pieces(self, entry: QuantizedEntry) -> Iterator[Tensor]:
        slots, path = self._slots(entry.blob), self._bundle.path(entry.blob)
        parts = {part: torch.from_numpy(read_tensor(path, slots[f"{entry.name}.{part}"])) for part in entry.part_shapes}
        rows, columns = entry.shape
        tensor = QuantizedTensor(in_features=columns, bits=entry.bits, group_size=entry.group_size, **parts)
        mask, own = self._sensitive.read(entry.name)
        indices = torch.from_numpy(mask.indices.astype(np.int64))
        values = self._values.get(entry.name, torch.from_numpy(own.astype(np.float32)))
        step = max(1, _PIECE_VALUES // columns)
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            weight = dequantize(tensor.rows(begin, end))
            first, last = np.searchsorted(mask.indices, (begin * columns, end * columns))
            weight.view(-1)[indices[first:last] - begin * columns] = values[first:last]  # Equation 26
            yield self._added.added_to(weight, entry.name, begin, end)

    def _slots(self, title: str) -> dict[str, TensorSlot]:
        if title not in self._headers:
            self._headers[title] = read_header(self._bundle.path(title))
        return self._headers[title]


def _sparse_values(subject: Subject) -> dict[str, Tensor]:
    """Return the tuned values of each weight that has some."""
    if subject.tuned is None or subject.tuned.part.method.is_beside_weights:
        return {}
    return dict(values_by_weight(subject.tuned, subject))


def values_by_weight(tuned: TunedRun, subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Yield weight after weight with its tuned values, float32 (k of the weight,), a view."""
    begin = 0
    for entry in entries_of(subject.bundle.config, tuned.part.blocks):
        yield entry.name, tuned.theta[begin : begin + entry.sensitive_count]
        begin += entry.sensitive_count


def published_values(subject_values: SensitiveTensors, entry: QuantizedEntry) -> Tensor:
    """Return a weight's own sensitive values, float32 (k of the weight,)."""
    return torch.from_numpy(subject_values.read(entry.name)[1].astype(np.float32))


class _LowRankUpdates:
    """(α/r) · B A of each weight that has factors."""

    def __init__(self, subject: Subject) -> None:
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._scale = 0.0
        if subject.tuned is None or not isinstance(method := subject.tuned.part.method, LowRankFactors):
            return
        self._scale = method.alpha / method.rank
        self._factors = dict(low_rank_factors(subject.tuned, subject))

    def added_to(self, weight: Tensor, name: str, begin: int, end: int) -> Tensor:
        """Return rows ``begin`` to ``end`` of a weight with their update."""
        if name not in self._factors:
            return weight
        first, second = self._factors[name]
        return torch.addmm(weight, second[begin:end], first, alpha=self._scale)


def low_rank_factors(tuned: TunedRun, subject: Subject) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield weight after weight with its factors A (r, in) and B (out, r), float32 views."""
    rank, begin = int(tuned.part.method.recorded["rank"]), 0
    for entry in entries_of(subject.bundle.config, tuned.part.blocks):
        rows, columns = entry.shape
        middle, end = begin + rank * columns, begin + rank * (columns + rows)
        yield entry.name, (tuned.theta[begin:middle].view(rank, columns), tuned.theta[middle:end].view(rows, rank))
        begin = end
