"""How a job's record and its events lie in the database's rows.

A record that today's rules refuse (an older service wrote it) is still read: as far as it can be shown, with an error
that says what is refused. One bad row must not take the list of jobs, or the queue, from everybody. A queued record
with an error is therefore never run. Knows nothing about transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ValidationError

from cloud_service.jobs.record import NO_PROGRESS, JobRecord, Outcome, UnreadableRecord, job_error
from shared.api import JobError, JobEvent, JobResult, JobStatus, PrepareRequest, Progress, Stage
from shared.field_errors import first_fault
from shared.text_types import showable, showable_document

_DOCUMENTS: dict[str, type[BaseModel]] = {
    "request": PrepareRequest,
    "progress": Progress,
    "outcome": Outcome,
    "result": JobResult,
    "error": JobError,
}
_ENUMS: dict[str, Callable[[str], Any]] = {"status": JobStatus, "stage": Stage, "crashed_stage": Stage}
_IN_PLACE_OF: dict[str, BaseModel] = {"request": PrepareRequest(model="unreadable"), "progress": NO_PROGRESS}
"""What stands for a document that cannot be read at all; None for the others."""


def row_of_record(job: JobRecord) -> dict[str, Any]:
    """Return a record's values, by column."""
    values = {field.name: getattr(job, field.name) for field in fields(JobRecord)}
    for name in _DOCUMENTS:
        if values[name] is not None:
            values[name] = values[name].model_dump(mode="json", by_alias=True)
    values["message"] = showable(values["message"])
    return values


def record_of_row(row: sa.Row[Any]) -> JobRecord:
    """Return the record in a row; where something stored is refused by today's rules, ``error`` says so."""
    values = {field.name: getattr(row, field.name) for field in fields(JobRecord)}
    unreadable = None
    for name, model in _DOCUMENTS.items():
        if values[name] is not None:
            try:
                values[name] = model.model_validate(values[name])
            except ValidationError as error:
                values[name], unreadable = _readable_part(name, values[name]), _describe(name, error)
    for name, enum in _ENUMS.items():
        if values[name] is not None:
            values[name] = enum(values[name])
    values["error"] = values["error"] or unreadable
    return JobRecord(**values)


def event_of_row(row: sa.Row[Any]) -> JobEvent:
    """Return the event in a row."""
    return JobEvent(
        id=row.id,
        at=row.at,
        status=JobStatus(row.status),
        stage=None if row.stage is None else Stage(row.stage),
        progress=Progress.model_validate(row.progress),
        message=row.message,
    )


def _readable_part(name: str, document: object) -> BaseModel | None:
    try:
        return _DOCUMENTS[name].model_validate(showable_document(document))
    except ValidationError:
        return _IN_PLACE_OF.get(name)


def _describe(name: str, error: ValidationError) -> JobError:
    fault = first_fault(error)
    return job_error(
        UnreadableRecord(
            f"stored {fault.found_in('.'.join(part for part in (name, fault.field) if part))}",
            needed=f"what this version of the service accepts: {fault.needed}",
            next_step="POST the request again without what is refused",
        )
    )
