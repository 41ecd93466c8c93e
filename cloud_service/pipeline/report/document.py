"""What a preparation measured, as the JSON document that is part of the bundle.

    mass curve    fraction of a tensor's weights, largest F first → share of Σ F they cover; mean and standard
                  deviation over the tensors (Figure 2)

The document holds no time, path or machine, so that it can be part of a reproducible bundle. The curve is read off a
histogram over the leading 20 bits of the float32 values (non-negative floats are ordered like their bits): one pass,
4 MiB, no sort; a value counts as the middle of its bin, which is at most 1/4096 off. Counts are integers, so the curve
does not depend on the order of sums. Knows nothing about pages or pictures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloud_service.pipeline.fisher.select_sensitive import Masks
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from shared.bundle.config import FORMAT_VERSION, DenseEntry, MaskProvenance, QuantizedEntry, Quantizer, SourceModel
from shared.bundle.manifest import TRUNK_TITLE
from shared.sensitivity_mask import SensitivityMask

_CURVE_POINTS = 41
_SMALLEST_FRACTION = 1e-5
_DROPPED_BITS = 12
_BINS = 0x7F80_0000 >> _DROPPED_BITS  # up to the bits of infinity
_CHUNK_ELEMENTS = 1 << 22

SENSITIVE_BYTES = {"sensitive_values": 2, "sensitive_indices": 4, "sensitive_ranks": 4}
"""Bytes of one sensitive weight, by what is stored of it."""

_ELEMENT_BYTES = {"U8": 1, "F16": 2}


@dataclass(frozen=True, slots=True)
class FisherFigures:
    """What the Fisher diagonal says about the mask; JSON-ready through ``dataclasses.asdict``.

    Attributes:
        split_half_overlap: Share of the mask on which two halves of the calibration agree; None for a mask that was
            not chosen by Fisher values.
        gradient_mass: Share of Σ F that the mask covers.
        tensor_mass: The same per tensor.
        fractions: Abscissae of the curve.
        curve_mean: Mean over the tensors of the share covered by the largest fraction.
        curve_std: Its standard deviation over the tensors.
    """

    split_half_overlap: float | None
    gradient_mass: float
    tensor_mass: dict[str, float]
    fractions: list[float]
    curve_mean: list[float]
    curve_std: list[float]


def fisher_figures(fisher: Mapping[str, Tensor], masks: Masks, split_half_overlap: float | None) -> FisherFigures:
    """Return the figures of a Fisher diagonal and of masks, in one pass: each tensor is asked for once, in order.

    Args:
        fisher: Fisher diagonal, float32, finite and not negative, by tensor name; may load a tensor at each access.
        masks: The mask of each of these tensors.
        split_half_overlap: Passed through.
    """
    fractions = np.geomspace(_SMALLEST_FRACTION, 1, _CURVE_POINTS)
    curves, covered, totals = [], [], {}
    for name, values in fisher.items():
        curves.append(mass_curve(values, fractions))
        covered.append(_mass_in(values, masks[name]))
        totals[name] = float(values.sum(dtype=torch.float64))
    whole = math.fsum(totals.values())
    return FisherFigures(
        split_half_overlap,
        _share(math.fsum(covered), whole),
        {name: _share(part, total) for part, (name, total) in zip(covered, totals.items(), strict=True)},
        fractions.tolist(),
        np.mean(curves, axis=0).tolist(),
        np.std(curves, axis=0).tolist(),
    )


def mass_curve(values: Tensor, fractions: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Return Σ of the largest ``fraction`` of the values / Σ of all, for each fraction (at least one value each).

    Args:
        values: Not negative, finite.
        fractions: 0 … 1.
    """
    counts = _histogram(values.flatten()).numpy()[::-1]
    taken = np.concatenate([[0], np.cumsum(counts)])
    mass = np.concatenate([[0.0], np.cumsum(counts * _bin_centres()[::-1])])
    wanted = [max(1, round(float(fraction) * values.numel())) for fraction in fractions]
    return [_share(float(part), float(mass[-1])) for part in np.interp(wanted, taken, mass)]


def report_document(
    source: SourceModel,
    mask: MaskProvenance,
    quantizer: Quantizer,
    figures: FisherFigures,
    blobs: Sequence[TensorBlob],
    perplexity: dict[str, Any] | None,
    *,
    format_version: str = FORMAT_VERSION,
    producer: str | None = None,
) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        source: The model.
        mask: How the mask was chosen.
        quantizer: The quantiser's settings.
        figures: From ``fisher_figures``.
        blobs: The bundle's tensors.
        perplexity: ``text``, ``documents``, ``tokens``, ``dtype`` computed in, and one value per variant; None where
            nothing was evaluated.
        format_version: Of the bundle.
        producer: Name and version of the program, as the bundle's configuration has it.
    """
    entries = [entry for blob in blobs for entry in blob.quantized]
    dense = [entry for blob in blobs for entry in blob.dense]
    quantized = sum(entry.element_count for entry in entries)
    parameters = quantized + sum(math.prod(entry.shape) for entry in dense)
    return {
        "producer": producer,
        "format_version": format_version,
        "source": source.model_dump(exclude=None if source.dequantized_from else {"dequantized_from"}),
        "mask": mask.model_dump(),
        "quantizer": quantizer.model_dump(),
        "perplexity": perplexity,
        "gradient_mass_curve": {
            "fractions": figures.fractions,
            "mean": figures.curve_mean,
            "std": figures.curve_std,
        },
        "parameters": parameters,
        "parameters_quantized": quantized,
        "bytes_16bit": 2 * parameters,
        "bytes_tensors": sum(blob.layer.size for blob in blobs),
        "bytes_by_part": bytes_by_part(entries, dense),
        "tensors": [_tensor_row(entry, figures) for entry in entries if entry.blob != TRUNK_TITLE],
        **_embeddings([entry for entry in entries if entry.blob == TRUNK_TITLE]),
    }


def bytes_by_part(entries: Sequence[QuantizedEntry], dense: Sequence[DenseEntry]) -> dict[str, int]:
    """Return what the tensors of a bundle take, by what they are: a function of the shapes alone."""
    parts = dict.fromkeys(("codes", "codebooks", "scales", "embeddings", "head", "norms_and_biases"), 0)
    for entry in entries:
        for name, (dtype, shape) in entry.part_shapes.items():
            kind = {"codes": "codes", "lut": "codebooks"}.get(name, "scales")
            kind = _kind_of(entry) if entry.blob == TRUNK_TITLE else kind
            parts[kind] += _ELEMENT_BYTES[dtype] * math.prod(shape)
    for parameter in dense:
        parts[_kind_of(parameter)] += 2 * math.prod(parameter.shape)
    count = sum(entry.sensitive_count for entry in entries)
    return parts | {part: size * count for part, size in SENSITIVE_BYTES.items()}


def _embeddings(entries: Sequence[QuantizedEntry]) -> dict[str, Any]:
    """Return what is said of embeddings and a head in codes: nothing where they are kept in 16 bits."""
    rows = [
        {"name": entry.name, "shape": list(entry.shape), "bits": entry.bits, "relative_error": entry.relative_error}
        for entry in entries
    ]
    return {"embeddings": rows} if rows else {}


def _kind_of(parameter: DenseEntry | QuantizedEntry) -> str:
    if len(parameter.shape) < 2:
        return "norms_and_biases"
    return "head" if parameter.name.startswith("lm_head") else "embeddings"


def _tensor_row(entry: QuantizedEntry, figures: FisherFigures) -> dict[str, Any]:
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "sensitive_count": entry.sensitive_count,
        "relative_error": entry.relative_error,
        "weighted_relative_error": entry.weighted_relative_error,
        "gradient_mass": figures.tensor_mass[entry.name],
    }


def _mass_in(values: Tensor, mask: SensitivityMask) -> float:
    index = torch.from_numpy(mask.indices).to(values.device, torch.int64)
    return float(values.flatten()[index].sum(dtype=torch.float64))


def _histogram(values: Tensor) -> Tensor:
    """Return how many values lie in each bin of leading bits, int64 (bins,), on the host."""
    counts = torch.zeros(_BINS, dtype=torch.int64, device=values.device)
    for part in torch.split(values, _CHUNK_ELEMENTS):
        bits = part.to(torch.float32).contiguous().view(torch.int32) >> _DROPPED_BITS
        counts += torch.bincount(bits, minlength=_BINS)
    return counts.cpu()


@functools.cache
def _bin_centres() -> NDArray[np.float64]:
    bits = (np.arange(_BINS, dtype=np.int32) << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))
    centres = bits.view(np.float32).astype(np.float64)
    centres[0] = 0.0  # zeros, and numbers below 6e-42
    return centres


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
