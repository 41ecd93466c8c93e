"""The worker threads: each claims a job, runs its attempt, and looks for the next one.

A worker that meets an unexpected error logs it and goes on: its job's lease expires and the job is claimed again. So
nothing that happens to one job stops the others. Threads suffice because the work itself is in other processes.
"""

from __future__ import annotations

import logging
import threading

from cloud_service.jobs.attempt import Attempt, Workshop
from cloud_service.jobs.record import JobRecord, LeaseLost, crash, fail, job_error
from shared.errors import ZoError

_logger = logging.getLogger(__name__)


class Supervisor:
    """The workers of one service.

    Args:
        shop: What attempts work with.
        owner: This service's name in leases; no other service ever had it.
    """

    def __init__(self, shop: Workshop, owner: str) -> None:
        self._shop = shop
        self._owner = owner
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Put back what a killed service left running, and start the workers."""
        self._requeue(is_any_lease_over=True)
        for number in range(self._shop.settings.workers):
            thread = threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """Make an idle worker look for a job now."""
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """Interrupt running attempts, put their jobs back, and wait until all workers are done."""
        self._shop.is_stopping.set()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def is_working(self) -> bool:
        """Whether every worker lives."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while not self._shop.is_stopping.is_set():
            try:
                has_worked = self._work_once()
            except Exception:
                _logger.exception("a worker met an unexpected error")
                has_worked = False
            if not has_worked:
                with self._wake:
                    self._wake.wait(self._shop.settings.poll_seconds)

    def _work_once(self) -> bool:
        self._requeue()
        job = self._shop.store.claim_next(owner=self._owner, lease_seconds=self._shop.settings.lease_seconds)
        if job is None:
            return False
        _log(job, "claimed")
        try:
            _log(Attempt(job, self._shop).run(), "ended")
        except LeaseLost as error:
            _logger.warning("%s", error.found, extra={"job_id": job.id})
        except ZoError as error:
            self._fail(job, error)
        except Exception as error:
            self._count_crash(job, error)
            raise
        return True

    def _fail(self, job: JobRecord, error: ZoError) -> None:
        attempt, now, reason = job.attempt, self._shop.store.clock(), job_error(error)
        failed = self._shop.store.change(job.id, lambda held: fail(held, attempt=attempt, error=reason, now=now))
        _log(failed, "ended")

    def _count_crash(self, job: JobRecord, error: Exception) -> None:
        attempt, now, limit = job.attempt, self._shop.store.clock(), self._shop.settings.max_attempts
        message = f"the service could not run the job: {type(error).__name__}: {error}"
        self._shop.store.change(
            job.id, lambda held: crash(held, attempt=attempt, message=message, max_attempts=limit, now=now)
        )

    def _requeue(self, *, is_any_lease_over: bool = False) -> None:
        limit = self._shop.settings.max_attempts
        for job in self._shop.store.requeue_abandoned(max_attempts=limit, is_any_lease_over=is_any_lease_over):
            _log(job, "abandoned")


def _log(job: JobRecord, what: str) -> None:
    _logger.info("job %s, now %s", what, job.status, extra={"job_id": job.id, "attempt": job.attempt})
