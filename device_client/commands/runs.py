"""``zo-device runs``: the tuning runs of this machine and what they came to."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.planning.tuned_blocks import ALL_BLOCKS
from device_client.settings import Settings
from shared.errors import IntegrityError, NotFound

NAME = "runs"
HELP = "list tuning runs and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to look."""
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER",
        help="a run begun with tune --output, or a folder of such runs (default: the home folder's)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """List every run of the folder.

    Raises:
        NotFound: There is no such folder.
    """
    if arguments.folder and not arguments.folder.is_dir():
        raise NotFound(
            f"no folder {arguments.folder}", needed="a run's folder, or one of runs", next_step="zo-device runs"
        )
    folder: Path = arguments.folder.resolve() if arguments.folder else settings.runs
    found = [describe(path) for path in _run_folders(folder)]
    if not found:
        console.say(f"No runs in {folder}. Next: zo-device tune --data FILE")
    else:
        columns = ("run", "state", "steps", "method", "blocks", "validation loss", "accuracy", "objective")
        console.table(f"Runs in {folder}", columns, [_cells(entry) for entry in found])
    return {"runs": found}


def _run_folders(folder: Path) -> list[Path]:
    """Return a folder that is a run, and those in it; a model's folder has a config.json too, but no journal."""
    try:
        paths = [folder, *sorted(folder.iterdir())]
    except FileNotFoundError:
        return []
    return [path for path in paths if all(os.access(path / name, os.F_OK) for name in ("config.json", "journal.bin"))]


def describe(folder: Path) -> dict[str, Any]:
    """Return a run's name, state, steps and evaluations; a damaged one is listed as damaged."""
    from device_client.tuning.journal import read_journal
    from device_client.tuning.run_directory import RunDirectory

    run_directory = RunDirectory(folder)
    try:
        config = run_directory.read_json("config.json") or {}
        result = run_directory.read_json("result.json")
        origin = run_directory.read_json("origin.json")
        steps_done = len(read_journal(run_directory.journal)[1])
    except IntegrityError:
        return {"name": folder.name, "path": str(folder), "state": "damaged"}
    state = "unfinished" if result is None or result["stopped_by"] == "time budget" else "finished"
    if origin is not None:  # shared by somebody, perhaps without a journal
        state, steps_done = "applied", origin["steps_done"]
    return {
        "name": folder.name,
        "path": str(folder),
        "state": state,
        "steps_done": steps_done,
        "steps": config["settings"]["steps"],
        "method": config["settings"].get("method", "sparse"),
        "blocks": config["settings"].get("blocks", ALL_BLOCKS),
        "metric": config["settings"].get("metric"),
        "bundle": config["bundle_digest"],
        "validation": result.get("validation") if result else None,
    }


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    if entry["state"] == "damaged":
        return entry["name"], "damaged", *[""] * 6
    steps = f"{entry['steps_done']} of {entry['steps']}"
    metric = entry["metric"] or "loss"
    run = entry["name"], entry["state"], steps, entry["method"], entry["blocks"]
    if entry["validation"] is None:
        return *run, "", "", metric
    change = partial(_change, entry["validation"]["bundle"], entry["validation"]["best"])
    objective = metric if entry["metric"] is None else f"{metric} {change('score', '.4g')}"
    figures = change("loss", ".4f"), change("accuracy", ".1%"), objective
    return *run, *figures


def _change(before: dict[str, Any], best: dict[str, Any], name: str, form: str) -> str:
    """Return a figure before and after, or a dash where there is none."""
    shown = ["–" if stage.get(name) is None else format(stage[name], form) for stage in (before, best)]
    return "–" if shown == ["–", "–"] else " → ".join(shown)
