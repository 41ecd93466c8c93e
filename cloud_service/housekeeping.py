"""Frees the disk of what nobody needs any more: at the service's start, every hour, and by ``zo-cloud gc``."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from cloud_service.jobs.leftovers import Cleared, Retention, clear_leftovers
from cloud_service.settings import Settings
from cloud_service.storage.garbage import Swept, sweep
from shared.bundle.layout import ImageLayout

_SECONDS_BETWEEN = 3600.0
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Freed:
    """What one run deleted, or in a dry run would delete."""

    swept: Swept
    cleared: Cleared

    def to_fields(self) -> dict[str, int]:
        """Return all counts in one table."""
        return {**dataclasses.asdict(self.swept), **dataclasses.asdict(self.cleared)}


def clean(engine: sa.Engine, settings: Settings, *, is_dry_run: bool = False) -> Freed:
    """Delete unneeded blobs and reports, and what jobs that are over left behind; return how much.

    Raises:
        DiskError: The database cannot be written.
    """
    now = datetime.now(UTC)
    retention = Retention(
        workspace=timedelta(days=settings.workspace_retention_days), log=timedelta(days=settings.log_retention_days)
    )
    cleared = clear_leftovers(engine, settings.jobs, retention, now=now, is_dry_run=is_dry_run)
    grace = timedelta(hours=settings.blob_grace_hours)
    layout = ImageLayout(settings.store)
    return Freed(sweep(engine, layout, settings.reports, now=now, grace=grace, is_dry_run=is_dry_run), cleared)


class Housekeeper:
    """A thread that cleans now and then; an error in one run is logged and the next run comes all the same.

    Args:
        clean: One run.
        is_stopping: Ends the thread when it is set.
        seconds_between: Time between two runs.
    """

    def __init__(
        self, clean: Callable[[], Freed], is_stopping: threading.Event, seconds_between: float = _SECONDS_BETWEEN
    ) -> None:
        self._clean, self._is_stopping, self._seconds_between = clean, is_stopping, seconds_between
        self._thread = threading.Thread(target=self._work, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Start with the first run."""
        self._thread.start()

    def stop(self) -> None:
        """Wait until the run in progress is done; ``is_stopping`` was set before."""
        self._thread.join()

    def _work(self) -> None:
        while not self._is_stopping.is_set():
            try:
                freed = self._clean().to_fields()
                if any(freed.values()):
                    _logger.info("freed what nobody needs", extra={"freed": freed})
            except Exception:
                _logger.exception("the housekeeper met an unexpected error")
            self._is_stopping.wait(self._seconds_between)
