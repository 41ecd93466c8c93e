"""Jobs over HTTP: start, look, follow, cancel."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from cloud_service.jobs.record import request_cancel
from cloud_service.jobs.store import Idempotency, JobStore
from cloud_service.routes.access import Access
from cloud_service.routes.bundles import peer_of
from cloud_service.routes.openapi import JobId, problems
from cloud_service.storage.keys import Scope
from shared.api import Job, JobEvent, JobEvents, JobList, JobStatus, PrepareRequest
from shared.errors import Unauthorized

SSE_COMMENT_SECONDS = 15
_logger = logging.getLogger(__name__)
_STREAM = "text/event-stream"
_MAX_EVENT_ID = 2**63 - 1
"""What the database can compare with."""

_STARTED = {"headers": {"Location": {"required": True, "schema": {"type": "string"}}}}


def job_routes(
    store: JobStore,
    access: Access,
    *,
    check_request: Callable[[PrepareRequest, str], None],
    check_owner: Callable[[str, str | None], None],
    wake_workers: Callable[[], None],
    is_stopping: threading.Event,
    poll_seconds: float,
    max_queued_per_key: int,
) -> APIRouter:
    """Return the routes.

    Args:
        store: The jobs.
        access: Who may call.
        check_request: Refuses a request that names what this service does not open, or what the key of that id may not
            publish to.
        check_owner: Refuses the key of an id that may not change what another key began.
        wake_workers: Called after a job was queued.
        is_stopping: Ends event streams when it is set.
        poll_seconds: How often event streams look for new events, and whether the caller may still see them.
        max_queued_per_key: Jobs that one API key may have waiting.
    """
    router = APIRouter(tags=["jobs"])
    caller = Depends(access.needs(Scope.JOBS))

    @router.post("/prepare-model", status_code=202, response_model=Job, responses={202: _STARTED})
    def prepare_model(
        request: PrepareRequest,
        http: Request,
        response: Response,
        owner: str = caller,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> Job:
        """Queue the preparation of a model."""
        check_request(request, owner)
        idempotency = Idempotency(owner, idempotency_key) if idempotency_key is not None else None
        peer = peer_of(http)
        job = store.create(request, idempotency, owner_key=owner, owner_peer=peer, max_queued=max_queued_per_key)
        _logger.info("job queued", extra={"job_id": job.id})
        wake_workers()
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return job.to_message()

    @router.get("/v1/jobs", dependencies=[caller], response_model=JobList, responses=problems(404))
    def list_jobs(
        status: JobStatus | None = None,
        after: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> JobList:
        """List jobs, newest first."""
        found = store.newest(status=status, after=after, limit=limit + 1)
        page = [job.to_message() for job in found[:limit]]
        return JobList(jobs=page, next=page[-1].id if len(found) > limit else None)

    @router.get("/v1/jobs/{job_id}", dependencies=[caller], response_model=Job, responses=problems(404))
    def get_job(job_id: JobId) -> Job:
        """Show one job."""
        return store.get(job_id).to_message()

    @router.post(
        "/v1/jobs/{job_id}/cancel",
        status_code=202,
        dependencies=[caller],
        response_model=Job,
        responses=problems(404),
    )
    def cancel_job(job_id: JobId, caller_key: str = caller) -> Job:
        """Ask a job to stop; repeating it, or cancelling what is over, changes nothing."""
        check_owner(caller_key, store.get(job_id).owner_key)
        return store.change(job_id, lambda job: request_cancel(job, now=store.clock())).to_message()

    @router.get(
        "/v1/jobs/{job_id}/events",
        dependencies=[caller],
        response_model=None,
        responses={
            200: {"model": JobEvents, "content": {_STREAM: {}}},
            204: {"description": "Nothing will come after the event that the client has seen."},
            **problems(404),
        },
    )
    def job_events(
        job_id: JobId,
        request: Request,
        after: Annotated[int, Query(ge=0, le=_MAX_EVENT_ID)] = 0,
        last_event_id: Annotated[int | None, Header(ge=0, le=_MAX_EVENT_ID)] = None,
    ) -> Response | JobEvents:
        """Show a job's events after an id, as JSON or, where the client accepts text/event-stream, as they come."""
        seen = last_event_id if last_event_id is not None else after
        job = store.get(job_id)
        if _STREAM not in request.headers.get("accept", ""):
            return JobEvents(events=store.events(job_id, after=seen))
        if job.status.is_terminal and seen >= job.last_event:
            return Response(status_code=204)  # tells an EventSource to stop connecting again

        def look(after: int) -> list[JobEvent]:
            access.recheck(request, Scope.JOBS)
            return store.events(job_id, after=after)

        return EventSourceResponse(_follow(look, seen, is_stopping, poll_seconds), ping=SSE_COMMENT_SECONDS)

    return router


async def _follow(
    look: Callable[[int], list[JobEvent]], seen: int, is_stopping: threading.Event, poll_seconds: float
) -> AsyncIterator[ServerSentEvent]:
    """Yield a job's events until the one that ends it, until the caller's key is refused, or the service stops."""
    while not is_stopping.is_set():
        try:
            events = await anyio.to_thread.run_sync(look, seen)
        except Unauthorized:
            return
        for event in events:
            yield _server_sent(event)
            seen = event.id
        if events and events[-1].status.is_terminal:
            return
        await anyio.sleep(poll_seconds)


def _server_sent(event: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.id), data=event.model_dump_json())
