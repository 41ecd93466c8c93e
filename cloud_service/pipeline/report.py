"""What a preparation measured, as JSON for programs and as one self-contained HTML page for people.

    curve   fraction of weights, largest F first → share of Σ F they cover; mean and standard deviation over the
            tensors (Figure 2)

The JSON holds no time, path or machine, so that it can be part of a reproducible bundle. The page holds its pictures as
inline SVG and loads nothing from anywhere. Knows nothing about how the figures were measured.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from cloud_service.pipeline.publish import TensorBlob
from cloud_service.pipeline.select_sensitive import Masks, gradient_mass
from shared.bundle.manifest import MaskProvenance, QuantizedEntry, Quantizer, SourceModel

_TEMPLATE = Path(__file__).parents[1] / "web" / "report.html"
_CURVE_POINTS = 41
_SMALLEST_FRACTION = 1e-5


@dataclass(frozen=True, slots=True)
class FisherFigures:
    """What the Fisher diagonal says about the mask; JSON-ready through ``dataclasses.asdict``.

    Attributes:
        split_half_overlap: Share of the mask on which two halves of the calibration agree; None for a random mask.
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
    """Return the figures of a Fisher diagonal and the masks chosen from it."""
    fractions = np.geomspace(_SMALLEST_FRACTION, 1, _CURVE_POINTS)
    curves = np.array([mass_curve(values, fractions) for values in fisher.values()])
    return FisherFigures(
        split_half_overlap,
        gradient_mass(fisher, masks),
        {name: gradient_mass({name: values}, masks) for name, values in fisher.items()},
        fractions.tolist(),
        curves.mean(axis=0).tolist(),
        curves.std(axis=0).tolist(),
    )


def mass_curve(values: Tensor, fractions: Sequence[float] | np.ndarray[Any, Any]) -> list[float]:
    """Return Σ of the largest ``fraction`` of the values / Σ of all, for each fraction (at least one value each)."""
    sums = torch.cumsum(values.flatten().sort(descending=True).values, dim=0, dtype=torch.float64)
    total = float(sums[-1])
    counts = [max(1, round(float(fraction) * len(sums))) for fraction in fractions]
    return [float(sums[count - 1]) / total if total else 0.0 for count in counts]


def report_document(
    source: SourceModel,
    mask: MaskProvenance,
    quantizer: Quantizer,
    figures: FisherFigures,
    blobs: Sequence[TensorBlob],
    perplexity: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of report.json."""
    entries = [entry for blob in blobs for entry in blob.quantized]
    dense = [entry for blob in blobs for entry in blob.dense]
    parameters = sum(entry.element_count for entry in entries) + sum(int(np.prod(entry.shape)) for entry in dense)
    return {
        "source": source.model_dump(),
        "mask": mask.model_dump(),
        "quantizer": quantizer.model_dump(),
        "perplexity": perplexity,
        "gradient_mass_curve": {
            "fractions": figures.fractions,
            "mean": figures.curve_mean,
            "std": figures.curve_std,
        },
        "parameters": parameters,
        "bytes_16bit": 2 * parameters,
        "bytes_tensors": sum(blob.layer.size for blob in blobs),
        "tensors": [_tensor_row(entry, figures) for entry in entries],
    }


def report_page(report: Mapping[str, Any]) -> bytes:
    """Return the HTML page of a report."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        report=report,
        curve=Markup(_curve_picture(report)),  # noqa: S704 - our own SVG
        errors=Markup(_error_picture(report)),  # noqa: S704
    )
    return page.encode()


def _tensor_row(entry: QuantizedEntry, figures: FisherFigures) -> dict[str, Any]:
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "sensitive_count": entry.sensitive_count,
        "relative_error": entry.relative_error,
        "weighted_relative_error": entry.weighted_relative_error,
        "gradient_mass": figures.tensor_mass[entry.name],
    }


def _curve_picture(report: Mapping[str, Any]) -> str:
    curve = report["gradient_mass_curve"]
    fractions, mean, std = (np.array(curve[key]) for key in ("fractions", "mean", "std"))
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(fractions, np.clip(mean - std, 0, 1), np.clip(mean + std, 0, 1), color="#c44", alpha=0.25)
    axes.plot(fractions, mean, color="#15c", label="mean ± std over tensors")
    axes.axvline(report["mask"]["sparsity"], color="#555", linestyle="--", label="sparsity of the mask")
    axes.set(xscale="log", ylim=(0, 1), xlabel="fraction of weights, largest first", ylabel="share of gradient mass")
    axes.legend(loc="upper left", framealpha=1, edgecolor="none")
    return _svg(figure, "curve")


def _error_picture(report: Mapping[str, Any]) -> str:
    rows = report["tensors"]
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, label in (("relative_error", "plain"), ("weighted_relative_error", "weighted by F")):
        axes.plot(range(len(rows)), [row[key] for row in rows], ".", label=label)
    axes.set(xlabel="quantised tensor, in model order", ylabel="relative squared error", ylim=(0, None))
    axes.legend(framealpha=1, edgecolor="none")
    return _svg(figure, "errors")


def _svg(figure: Figure, salt: str) -> str:
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
