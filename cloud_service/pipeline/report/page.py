"""The report as one HTML page: what an operator asks before shipping a bundle to a fleet.

Verdict and figures come from report.json's content, time and memory from the record of the run, which no bundle
holds. The page loads nothing from anywhere: style and pictures are inline, there is no script. It follows the reader's
dark mode, prints, and fits a phone; wide tables scroll inside their box.
Knows nothing about how the figures were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloud_service.pipeline.report.block_grid import BlockGrid, block_grid, short_name
from cloud_service.pipeline.report.page_template import render_page
from cloud_service.pipeline.report.pictures import error_picture, mass_curve_picture
from cloud_service.pipeline.report.run_record import PeakBytes, RunRecord
from cloud_service.pipeline.report.verdict import judge, outliers

_PARTS = {
    "codes": "Dense codes",
    "codebooks": "Codebooks",
    "scales": "Group scales and zeros",
    "sensitive_values": "Sensitive values",
    "sensitive_indices": "Sensitive indices",
    "sensitive_ranks": "Sensitive ranks",
    "embeddings": "Embeddings, 16 bit",
    "head": "Output head, 16 bit",
    "norms_and_biases": "Norms and biases, 16 bit",
}


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One line of the size table.

    Attributes:
        label: What it is.
        size_bytes: Its bytes.
        is_sum: Whether it adds up what stands above.
    """

    label: str
    size_bytes: int
    is_sum: bool = False


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of the table of plan against actual; seconds or bytes, None where unknown."""

    label: str
    planned: float | None
    actual: float | None

    @property
    def ratio(self) -> float | None:
        """Actual over planned."""
        return self.actual / self.planned if self.planned and self.actual is not None else None


def report_page(report: Mapping[str, Any], run: RunRecord | None = None) -> bytes:
    """Return the HTML page, UTF-8.

    Args:
        report: Content of report.json.
        run: How the run went; None leaves out plan, time, memory and the bundle's digest.
    """
    return render_page(
        "report.html",
        report=report,
        run=run,
        verdict=judge(report),
        curve=mass_curve_picture(report),
        errors=error_picture(report),
        places={row["name"]: short_name(row["name"]) for row in report["tensors"]},
        outliers=outliers({row["name"]: row["weighted_relative_error"] for row in report["tensors"]}),
        density=density_grid(report),
        mass=block_grid({row["name"]: row["gradient_mass"] for row in report["tensors"]}),
        sizes=list(size_rows(report, run)),
        times=list(_time_rows(run)),
        peaks=list(_peak_rows(run)),
        bits_per_weight=stored_bits_per_weight(report),
    )


def density_grid(report: Mapping[str, Any]) -> BlockGrid | None:
    """Return each weight's share of sensitive values over the sparsity; None where scope makes it 1 everywhere."""
    if report["mask"]["scope"] == "per_tensor":
        return None
    sparsity = report["mask"]["sparsity"]
    return block_grid({row["name"]: row["sensitive_count"] / _elements(row) / sparsity for row in report["tensors"]})


def size_rows(report: Mapping[str, Any], run: RunRecord | None = None) -> Iterator[SizeRow]:
    """Yield the lines of the size table; parts that the bundle does not have are left out."""
    parts = {label: report["bytes_by_part"][part] for part, label in _PARTS.items()}
    yield from (SizeRow(label, size) for label, size in parts.items() if size)
    yield SizeRow("File headers", report["bytes_tensors"] - sum(parts.values()))
    yield SizeRow("All tensors", report["bytes_tensors"], is_sum=True)
    if run is not None and run.bundle_bytes is not None:
        yield SizeRow("Documents and manifest", run.bundle_bytes - report["bytes_tensors"])
        yield SizeRow("Download", run.bundle_bytes, is_sum=True)
    yield SizeRow("The 16-bit model", report["bytes_16bit"], is_sum=True)


def stored_bits_per_weight(report: Mapping[str, Any]) -> float:
    """Return the bits stored per quantised weight: codes, codebooks, scales and the sensitive part."""
    parts = report["bytes_by_part"]
    stored = sum(parts[part] for part in ("codes", "codebooks", "scales"))
    sensitive = sum(size for part, size in parts.items() if part.startswith("sensitive"))
    return float(8 * (stored + sensitive) / report["parameters_quantized"])


def _elements(row: Mapping[str, Any]) -> int:
    return int(row["shape"][0] * row["shape"][1])


def _time_rows(run: RunRecord | None) -> Iterator[PlanRow]:
    if run is None:
        return
    yield from (PlanRow(stage.stage, stage.predicted_seconds, stage.seconds) for stage in run.stages)
    predicted = [stage.predicted_seconds for stage in run.stages if stage.predicted_seconds is not None]
    whole_is_planned = len(predicted) == len(run.stages)
    yield PlanRow("all stages", sum(predicted) if whole_is_planned else None, sum(s.seconds for s in run.stages))


def _peak_rows(run: RunRecord | None) -> Iterator[PlanRow]:
    for label, peak in (("accelerator", run.accelerator), ("host", run.host)) if run else ():
        if peak != PeakBytes():
            yield PlanRow(label, peak.planned, peak.measured)
