"""Deletes a run: the files that a run consists of, and what a killed process was writing of them; nothing else.

The journal's lock is held meanwhile, so a run in use is refused. Configuration and journal go last: as long as both
are there, it is a run, and can be deleted again after a kill.
"""

from __future__ import annotations

from device_client.tuning.run_directory import FILES_BEFORE_THE_END, RESULT, RunDirectory
from shared.durable_files import disk_errors
from shared.errors import Conflict
from shared.file_lock import exclusive

RUN_FILES = (RESULT, "resources.json", "loss.svg", "answers.json", "report.html", "origin.json", *FILES_BEFORE_THE_END)
"""origin.json is of a run that somebody shared."""


def remove_run(run: RunDirectory) -> int:
    """Delete a run, and its folder where nothing else is in it; return the bytes freed.

    Raises:
        Conflict: Another process is tuning it.
        DiskError: A file cannot be deleted.
    """
    busy = Conflict(f"another zo-device is tuning {run.path}", next_step="stop it, or wait until it ends")
    freed_bytes = used_bytes(run)
    with exclusive(run.journal, busy=busy), disk_errors(run.path):
        for name in _names(run):
            (run.path / name).unlink(missing_ok=True)
        if not any(run.path.iterdir()) and not run.path.is_symlink():
            run.path.rmdir()
    return freed_bytes


def used_bytes(run: RunDirectory) -> int:
    """Return what a run takes of the disk."""
    files = [run.path / name for name in _names(run)]
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())


def _names(run: RunDirectory) -> list[str]:
    torn = sorted(path.name for name in RUN_FILES for path in run.path.glob(f".{name}.*"))
    return [*torn, *RUN_FILES]
