"""Prometheus metrics: requests by route, jobs by state, free disk. Jobs and disk are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.api import JobStatus


class RequestMetrics:
    """Counts and times requests by method, route and status: never by path, which has too many values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "zo_cloud_request_seconds",
            "Time to answer a request.",
            ["method", "route", "status"],
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "OTHER"
        self._seconds.labels(known, route, str(status)).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self.registry)


class ServiceState(Collector):
    """Reads jobs by state and free disk at each scrape.

    Args:
        count_jobs: Returns the number of jobs in each state.
        free_bytes: Returns the free bytes of the store's disk.
    """

    def __init__(self, count_jobs: Callable[[], dict[JobStatus, int]], free_bytes: Callable[[], int]) -> None:
        self._count_jobs = count_jobs
        self._free_bytes = free_bytes

    def describe(self) -> list[Metric]:
        """Return nothing: names are known without reading the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        jobs = GaugeMetricFamily("zo_cloud_jobs", "Jobs by state.", labels=["status"])
        for status, count in self._count_jobs().items():
            jobs.add_metric([status], count)
        yield jobs
        yield GaugeMetricFamily("zo_cloud_store_free_bytes", "Free bytes of the store's disk.", self._free_bytes())
