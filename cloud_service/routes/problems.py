"""Every error as RFC 9457 problem+json: a stable ``type``, the field at fault, what was found, needed and to do next.

``type`` is the error's slug, for example ``invalid-model-id``; the same text stands in a failed job's error. Unexpected
errors show their request id and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from cloud_service.json_logs import request_id
from cloud_service.routes.challenges import challenge_to
from cloud_service.routes.oci_errors import is_oci_path, with_oci_errors
from cloud_service.routes.request_faults import framework_fault, request_faults
from shared.api import PROBLEM_MEDIA_TYPE, Problem
from shared.errors import InvalidRequest, ZoError

_SLUGS = {404: "not-found", 405: "method-not-allowed", 413: "content-too-large"}
_logger = logging.getLogger(__name__)


class InvalidRange(InvalidRequest):
    """A Range header that is malformed or lies outside a blob of ``size`` bytes."""

    status = 416

    def __init__(self, header: str, size: int) -> None:
        super().__init__(
            f"Range {header[:80]!r} of {size} bytes",
            needed="one range such as bytes=0-1023 inside the blob",
            next_step="ask for bytes that exist, or leave the Range out",
            param="Range",
        )
        self.size = size


class NotReady(ZoError):
    """The service cannot work now."""

    status = 503


def add_problem_handlers(app: FastAPI) -> None:
    """Make ``app`` answer all errors with problems."""
    app.add_exception_handler(ZoError, zo_error_response)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, http_error_response)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as a response; one about the OCI distribution API also in that API's form."""
    if problem.instance is not None and is_oci_path(problem.instance):
        problem = with_oci_errors(problem, problem.instance)
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, problem.status, dict(headers or {}), media_type=PROBLEM_MEDIA_TYPE)


def internal_error(path: str) -> Response:
    """Return the response to an unexpected error, which was logged under the same request id."""
    detail = f"an unexpected error; the log has it under request {request_id.get()}"
    problem = Problem(type="internal-error", title=_title(500), status=500, detail=detail, instance=path)
    return problem_response(problem)


def zo_error_response(request: Request, error: Exception) -> Response:
    """Return the response to an error of ours."""
    assert isinstance(error, ZoError)  # noqa: S101 - registered for this type
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _logger.error("%s", error.found, exc_info=error)
    problem = Problem(
        type=error.slug,
        title=_title(error.status),
        status=error.status,
        detail=error.http_text,
        instance=request.url.path,
        param=error.param,
    )
    return problem_response(problem, _headers(error, request))


def _headers(error: ZoError, request: Request) -> dict[str, str]:
    if isinstance(error, InvalidRange):
        return {"Content-Range": f"bytes */{error.size}"}
    if error.status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": challenge_to(request)}
    return {}


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    first, *others = request_faults(request, error)
    document = {
        "type": first.slug,
        "title": _title(422),
        "status": 422,
        "detail": first.http_text,
        "instance": request.url.path,
        "param": first.param,
        "errors": [
            {"param": fault.param, "message": f"{fault.found}; needed: {fault.needed}"} for fault in (first, *others)
        ],
    }
    return problem_response(Problem.model_validate(document))


def http_error_response(request: Request, error: Exception) -> Response:
    """Return the response to an error of the framework, such as an unknown path."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    title = _title(error.status_code)
    problem = Problem(
        type=_SLUGS.get(error.status_code, title.lower().replace(" ", "-")),
        title=title,
        status=error.status_code,
        detail=framework_fault(request, error).http_text,
        instance=request.url.path,
    )
    return problem_response(problem, error.headers)


def _title(status: int) -> str:
    return HTTPStatus(status).phrase
