"""A run's folder with figures that are written down: what a page or a comparison shows of it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_client.tuning.journal import JournalHeader, StepFlags, StepRecord, open_journal
from device_client.tuning.run_directory import RunDirectory

HEADER = JournalHeader(0, "stream", "gaussian", 3, 1, 0.5, "sha256:bundle", "sha256:settings", is_measured=True)


def write_run(
    folder: Path,
    *,
    gradients: Sequence[float] = (1.0, -3.0, 2.0, 4.0),
    curved_steps: int = 1,
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    losses: Sequence[float] = (0.9, 0.7, 0.6),
    answers: Mapping[str, Any] | None = None,
    is_finished: bool = True,
) -> Path:
    """Write a run of a step for each gradient, validated every second one, and return its folder."""
    run = RunDirectory(folder)
    run.create()
    decided = {"objective": "candidates", "steps": len(gradients), "epsilon": 0.5, **(settings or {})}
    run.write_json(
        "config.json",
        {
            "settings": decided, "bundle_digest": HEADER.bundle_digest, "rendering": {"template": "{text} {label}"},
            "max_tokens": None, "source_model": "tiny", "rows": {"validation": "sha256:rows"}, **(config or {}),
        },
    )  # fmt: skip
    with open_journal(run.journal, HEADER) as journal:
        for step, gradient in enumerate(gradients):
            curvature = 2.0 if step < curved_steps else math.nan
            journal.append(StepRecord(step, 0.1, 0.8, StepFlags.NONE, (gradient,), 0.5, curvature))
    for number, loss in enumerate(losses):
        line = {"kind": "validation", "steps_done": 2 * number, "loss": loss, "accuracy": 0.5, "rows": 3}
        run.append_metric(line)
        run.append_line("seconds.jsonl", {"steps_done": 2 * number, "seconds": 10.0 * number})
    if answers is not None:
        run.write_json("answers.json", dict(answers))
    if is_finished:
        stages = {
            stage: {"loss": loss, "accuracy": 0.5, "rows": 3}
            for stage, loss in (("bundle", losses[0]), ("last", losses[-1]), ("best", losses[-1]))
        }
        run.write_json("resources.json", {"noise_floor": 1e-3, "peak_memory_bytes": 3 << 20, "device": "cpu"})
        run.write_json(
            "result.json",
            {
                "stopped_by": "steps", "steps_done": len(gradients), "best_step": 4, "validation": stages,
                "median_loss_difference": 2.5,
            },
        )  # fmt: skip
    return folder
