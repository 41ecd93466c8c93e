"""A plan for people: what was chosen, and a table of predicted peaks and durations against the budgets.

The choice relies on the peaks; durations are rough, from rates measured in some hundred milliseconds.
Knows nothing about terminals.
"""

from __future__ import annotations

from cloud_service.pipeline.planning.preparation_plan import PreparationPlan
from shared.byte_sizes import format_bytes


def plan_line(plan: PreparationPlan) -> str:
    """Return the plan in one line."""
    peak = f"{format_bytes(plan.host_bytes)} of main memory"
    if plan.accelerator_budgets:
        peak = f"{format_bytes(plan.accelerator_bytes)} of accelerator memory and {peak}"
    return f"{', '.join(_choices(plan))}; predicted peak {peak}, {_about(plan.seconds)}"


def plan_table(plan: PreparationPlan) -> str:
    """Return the plan as text of several lines."""
    rows = [["stage", "accelerator", "main memory", "time (about)"]]
    for stage in plan.stages:
        fullest = format_bytes(max(stage.accelerator_bytes, default=0))
        rows.append([stage.stage, fullest, format_bytes(stage.host_bytes), format_seconds(stage.seconds)])
    smallest = format_bytes(min(plan.accelerator_budgets, default=0))
    rows.append(["budget", smallest, format_bytes(plan.host_budget), ""])
    if not plan.accelerator_budgets:
        rows = [[name, *rest] for name, _, *rest in rows]
    return "\n".join([*(f"- {choice}" for choice in _choices(plan)), "", *_aligned(rows)])


def format_seconds(seconds: float) -> str:
    """Return a duration in the two largest units that say something, for example ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _about(seconds: float) -> str:
    return f"about {format_seconds(seconds)}" if seconds >= 1 else format_seconds(seconds)


def _choices(plan: PreparationPlan) -> list[str]:
    passes = len(plan.passes)
    devices = len(set(plan.device_map.values())) if plan.device_map else 1
    is_beside_the_weights = plan.accumulators == "accelerator" and plan.accelerator_budgets
    where = "beside the weights" if is_beside_the_weights else "in main memory"
    groups = (
        f"{passes} passes of up to {max(map(len, plan.passes))} blocks" if passes > 1 else "one pass over all blocks"
    )
    if plan.streamed_shards is not None:
        return [
            f"gradients in {plan.compute_dtype}",
            "the network read block by block",
            f"calibration shards that go through it together: {plan.streamed_shards}",
            "Fisher sums and totals of one block in main memory",
        ]
    return [
        f"gradients in {plan.compute_dtype}" + (f" on {devices} accelerators" if devices > 1 else ""),
        groups,
        f"activations {'recomputed' if plan.recomputes_activations else 'kept'}",
        f"Fisher sums {where}",
        f"totals {'in main memory' if plan.totals_in_memory else 'on disk'}",
        *([f"16-bit copy of {format_bytes(plan.copied_bytes)} in the workspace"] if plan.copied_bytes else []),
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return lines whose first column is aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return ["  ".join(line).rstrip() for line in cells]
