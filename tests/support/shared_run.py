"""Real runs of the tiny bundle, tuned once and copied into devices' homes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_run import SETTINGS, run, write_rows

from device_client.tasks.task_data import DataOptions
from device_client.tuning.planned_run import plan_run
from shared.bundle.read import Bundle


class TunedRuns:
    """Runs of twelve steps on rows of a file called ``canary-rows.jsonl``.

    Args:
        bundle: What is tuned.
        folder: Where runs are kept.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._made: dict[str, Path] = {}

    def put_into(self, home: Path, **changes: Any) -> str:
        """Put the run with these settings into a home, and return its name."""
        made = self._made.get(repr(changes)) or self._tune(changes)
        shutil.copytree(made, home / "runs" / made.name)
        return made.name

    def _tune(self, changes: dict[str, Any]) -> Path:
        rows = write_rows(self._folder / "canary-rows.jsonl")
        options = DataOptions(data=rows, test=rows, validation_share=0.25)
        plan = plan_run(self._bundle, replace(SETTINGS, **changes), options, runs=self._folder / "runs")
        run(plan, lambda: 0.0)
        self._made[repr(changes)] = plan.directory.path
        return plan.directory.path
