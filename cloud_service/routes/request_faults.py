"""What is wrong with a request that the framework refused before a route saw it, in the words of our errors.

A field is named as the caller wrote it: ``calibration.tokens_per_sequence``, ``limit``. Broken JSON has no field; its
text names line and column. Knows nothing about responses.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from shared.errors import InvalidRequest, ZoError
from shared.field_errors import describe_fault, shown, shown_name

MAX_FAULTS = 20
"""A request may have thousands of unknown fields; its answer names the first ones."""

_PLACES = frozenset({"body", "query", "path", "header"})
_JSON = "application/json"
_SEE_FIELDS = "correct it and send the request again; GET /openapi.json describes the fields and their limits"


def request_faults(request: Request, error: RequestValidationError) -> list[InvalidRequest]:
    """Return what is wrong with the fields of a request, at least one error and at most ``MAX_FAULTS``."""
    return list(_faults(request, error))


def framework_fault(request: Request, error: HTTPException) -> ZoError:
    """Return the framework's own error, such as for an unknown path, in our words."""
    found = f"{request.method} {shown_name(request.url.path)}: {error.detail}"
    match error.status_code:
        case 400:
            return ZoError(
                f"{request.method} {shown_name(request.url.path)} with a body that cannot be read",
                needed="JSON in UTF-8, nested no deeper than the fields are",
                next_step=_SEE_FIELDS,
            )
        case 405:
            allowed = (error.headers or {}).get("Allow", "another one")
            return ZoError(found, needed=f"the method {allowed}", next_step="see GET /openapi.json for the routes")
        case 413:
            return ZoError(found, needed="a shorter body", next_step="leave out what the request does not need")
        case _:
            return ZoError(found, needed="a route of this service", next_step="see GET /openapi.json for the routes")


def _faults(request: Request, error: RequestValidationError) -> Iterator[InvalidRequest]:
    for fault in error.errors()[:MAX_FAULTS]:
        if fault["type"] == "json_invalid":
            yield _broken_json(str(error.body), int(fault["loc"][-1]), str(fault["ctx"]["error"]))
        elif fault["loc"] == ("body",) and isinstance(fault.get("input"), bytes):
            yield _not_sent_as_json(request.headers.get("content-type"))
        else:
            described = describe_fault(fault, places=_PLACES)
            name = described.field or "body"
            found, needed = described.found_in(name), described.needed
            yield InvalidRequest(found, needed=needed, next_step=_SEE_FIELDS, param=name)


def _broken_json(text: str, position: int, reason: str) -> InvalidRequest:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return InvalidRequest(
        f"a body that is not JSON: {reason}, line {line} column {column}",
        needed="one JSON document",
        next_step="correct the JSON there and send the request again",
    )


def _not_sent_as_json(content_type: str | None) -> InvalidRequest:
    return InvalidRequest(
        "a body without a Content-Type" if content_type is None else f"a body of Content-Type {shown(content_type)}",
        needed=f"the header Content-Type: {_JSON}",
        next_step=f"send it with curl -H 'Content-Type: {_JSON}', or the like",
        param="Content-Type",
    )
