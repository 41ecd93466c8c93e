"""``zo-device runs``: the tuning runs of this machine and what they came to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.settings import Settings
from shared.errors import IntegrityError

NAME = "runs"
HELP = "list tuning runs and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments: none."""


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:  # noqa: ARG001
    """List every run of the runs folder."""
    folders = sorted(path.parent for path in settings.runs.glob("*/config.json"))
    found = [describe(folder) for folder in folders]
    if not found:
        console.say(f"No runs in {settings.runs}. Next: zo-device tune --data FILE")
    else:
        columns = ("run", "state", "steps", "validation loss", "accuracy")
        console.table(f"Runs in {settings.runs}", columns, [_cells(entry) for entry in found])
    return {"runs": found}


def describe(folder: Path) -> dict[str, Any]:
    """Return a run's name, state, steps and evaluations; a damaged one is listed as damaged."""
    from device_client.tuning.journal import read_journal
    from device_client.tuning.run_directory import RunDirectory

    run_directory = RunDirectory(folder)
    try:
        config = run_directory.read_json("config.json") or {}
        result = run_directory.read_json("result.json")
        steps_done = len(read_journal(run_directory.journal)[1]) if run_directory.journal.exists() else 0
    except IntegrityError:
        return {"name": folder.name, "path": str(folder), "state": "damaged"}
    state = "unfinished" if result is None or result["stopped_by"] == "time budget" else "finished"
    return {
        "name": folder.name,
        "path": str(folder),
        "state": state,
        "steps_done": steps_done,
        "steps": config["settings"]["steps"],
        "bundle": config["bundle_digest"],
        "validation": result["validation"] if result else None,
    }


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    if entry["state"] == "damaged":
        return entry["name"], "damaged", "", "", ""
    steps = f"{entry['steps_done']} of {entry['steps']}"
    if entry["validation"] is None:
        return entry["name"], entry["state"], steps, "", ""
    before, best = entry["validation"]["bundle"], entry["validation"]["best"]
    accuracy = "–" if best["accuracy"] is None else f"{before['accuracy']:.1%} → {best['accuracy']:.1%}"
    return entry["name"], entry["state"], steps, f"{before['loss']:.4f} → {best['loss']:.4f}", accuracy
