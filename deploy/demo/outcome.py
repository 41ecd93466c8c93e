"""What the demo came to: one table for a person, the same figures as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from setups import Cloud, Personal

from shared.api import BundleSummary


def outcome(
    bundle: BundleSummary, pulled: dict[str, Any], tuned: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of the whole demo.

    Args:
        bundle: What the service published.
        pulled: What ``zo-device pull`` answered.
        tuned: What ``zo-device tune`` answered.
        seconds: Stage → seconds that it took.
    """
    test, resources = tuned["result"]["test"], tuned["resources"]
    return {
        "test_rows": test["bundle"]["rows"],
        "accuracy_before": test["bundle"]["accuracy"],
        "accuracy_after": test["best"]["accuracy"],
        "loss_before": test["bundle"]["loss"],
        "loss_after": test["best"]["loss"],
        "perplexity_16bit": bundle.perplexity_16bit,
        "perplexity_bundle": bundle.perplexity_bundle,
        "bundle_bytes": bundle.size_bytes,
        "fp16_bytes": 2 * bundle.parameter_count,
        "bundle_bytes_over_fp16": bundle.size_bytes / (2 * bundle.parameter_count),
        "pulled_bytes": pulled["fetched_bytes"],
        "sensitive_values": bundle.sensitive_count,
        "parameters": bundle.parameter_count,
        "steps": tuned["result"]["steps_done"],
        "seconds_per_step": resources["seconds_per_step"],
        "peak_memory_bytes": resources["peak_memory_bytes"],
        "memory_budget_bytes": resources["memory_budget_bytes"],
        "stage_seconds": seconds,
        "seconds": sum(seconds.values()),
    }


def table_of(figures: dict[str, Any]) -> Table:
    """Return the table that the demo ends with."""
    table = Table("", "before", "after", title="zo-device demo", title_justify="left")
    table.add_row(
        f"accuracy on {figures['test_rows']} test rows",
        percent(figures["accuracy_before"]),
        percent(figures["accuracy_after"]),
    )
    table.add_row("loss on them, nats", f"{figures['loss_before']:.4f}", f"{figures['loss_after']:.4f}")
    table.add_section()
    table.add_row("", "16 bit", "bundle")
    if figures["perplexity_16bit"] is not None:
        table.add_row(
            "perplexity, held-out text", f"{figures['perplexity_16bit']:.3f}", f"{figures['perplexity_bundle']:.3f}"
        )
    smaller = f"{figures['bundle_bytes']:,} ({figures['bundle_bytes_over_fp16']:.0%})"
    table.add_row("bytes", f"{figures['fp16_bytes']:,}", smaller)
    table.add_section()
    table.add_row("values tuned", "", f"{figures['sensitive_values']:,} of {figures['parameters']:,}")
    table.add_row("seconds per step", "", f"{figures['seconds_per_step']:.3f}")
    peak, budget = figures["peak_memory_bytes"] / 2**20, figures["memory_budget_bytes"] / 2**20
    table.add_row("peak memory of tune", "", f"{peak:,.0f} of {budget:,.0f} MiB")
    table.add_row("seconds in all", "", f"{figures['seconds']:.0f}")
    return table


def closing_lines(output: Path, cloud: Cloud, personal: Personal, commands: Sequence[str]) -> list[str]:
    """Return where to look and what to type next."""
    return [
        f"Report page  {output / 'report.html'}",
        f"Run's page   {output / 'run' / 'report.html'}",
        f"Rows         {personal.files['train'].parent}",
        *([f"Model        {cloud.credit}"] if cloud.credit else []),
        "Next, by hand:",
        *(f"  {command}" for command in commands),
    ]


def percent(share: float | None) -> str:
    """A share as a percentage; rows without labels have no accuracy."""
    return "–" if share is None else f"{share:.1%}"
