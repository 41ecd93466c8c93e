"""What the service and a job's process say to each other, as JSON lines.

    service → process (stdin)   one JobOrder; then the pipe stays open as long as the service lives
    process → service (stdout)  stages, progress, the planned memory and notes; at the end one Finished or Failed

A job's process is not trusted: what it says is bounded in length and number, and cleaned of what cannot be shown.

The hub token travels in the order: a pipe, unlike an environment, cannot be read by other processes, and unlike a file
it leaves nothing behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator

from cloud_service.jobs.record import MAX_ERROR, Outcome, printable
from cloud_service.launcher_choice import LauncherChoice
from shared.api import JobError, PrepareRequest, Stage

LOG_NAME = "log.txt"
LOCK_NAME = "lock"
WORKSPACE_NAME = "workspace"
TEMPORARY_NAME = "tmp"
"""What lies in a job's folder. The job's process writes in the last two alone; the others are the service's."""

STORE_NAME = "store"
REPORT_NAME = "report.html"
"""What lies in a workspace besides checkpoints: the image layout of the job's blobs, and the report page."""


_MAX_NAME, _MAX_NOTE = 100, 2000
"""Characters of a name and of a note; what is longer is cut."""


class Line(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobOrder(Line):
    """What a process shall do.

    Attributes:
        max_accelerator_bytes: What may be used of each accelerator; None allows all of it.
        max_host_bytes: What may be used of main memory; None allows what is free.
        launcher: Where the Fisher pass runs.
        prepared: What was published before from the same input, by fingerprint; empty where ``force`` is set.
        progress_seconds: Shortest time between two progress messages of a stage.
    """

    request: PrepareRequest
    model_roots: tuple[Path, ...] = ()
    text_roots: tuple[Path, ...] = ()
    hub_namespaces: tuple[str, ...] = ()
    hub_endpoint: str | None = None
    hub_token: str | None = Field(default=None, repr=False)
    is_offline: bool = False
    max_accelerator_bytes: Annotated[int, Field(ge=1)] | None = None
    max_host_bytes: Annotated[int, Field(ge=1)] | None = None
    launcher: LauncherChoice = LauncherChoice()
    prepared: dict[str, Outcome] = {}
    progress_seconds: float = 1.0


Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A number that every reader of JSON, and the database, can hold."""


class StageBegan(Line):
    """A stage begins."""

    kind: Literal["stage"] = "stage"
    stage: Stage
    total: Count = 0
    unit: Annotated[str, Field(max_length=40)] = ""


class Advanced(Line):
    """So many units of the stage are done."""

    kind: Literal["advance"] = "advance"
    done: Count


class MemoryPlanned(Line):
    """The plan is known: the process will use so much main memory. The service allows it a margin."""

    kind: Literal["memory"] = "memory"
    host_bytes: Count


class Noted(Line):
    """Something a person should know."""

    kind: Literal["note"] = "note"
    message: Annotated[str, BeforeValidator(lambda text: printable(str(text), _MAX_NOTE))]


class Finished(Line):
    """The bundle's blobs and the report page are in the workspace."""

    kind: Literal["finished"] = "finished"
    outcome: Outcome


class Failed(Line):
    """An error somebody can act on ended the work."""

    kind: Literal["failed"] = "failed"
    error: JobError

    @field_validator("error")
    @classmethod
    def _is_bounded(cls, error: JobError) -> JobError:
        changes = {"type": printable(error.type, _MAX_NAME), "message": printable(error.message, MAX_ERROR)}
        return error.model_copy(update=changes | {"param": error.param and printable(error.param, _MAX_NAME)})


Message = StageBegan | Advanced | MemoryPlanned | Noted | Finished | Failed
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def parse_message(line: bytes) -> Message:
    """Return the message in a line of a process's standard output. Raises ValueError where there is none."""
    return _MESSAGE.validate_json(line)
