"""Errors of the OCI distribution API: ``{"errors": [{"code", "message", "detail"}]}``, as members of our problems.

A problem (RFC 9457) may have members of its own, so one body is read by both kinds of clients.
Reference: OCI distribution specification 1.1, "Error Codes".
"""

from __future__ import annotations

from http import HTTPStatus

from shared.api import Problem

_ROOT = "/v2/"
_CODES = {
    HTTPStatus.BAD_REQUEST: "UNSUPPORTED",
    HTTPStatus.UNAUTHORIZED: "UNAUTHORIZED",
    HTTPStatus.FORBIDDEN: "DENIED",
    HTTPStatus.METHOD_NOT_ALLOWED: "UNSUPPORTED",
    HTTPStatus.NOT_ACCEPTABLE: "MANIFEST_UNKNOWN",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "RANGE_INVALID",
    HTTPStatus.UNPROCESSABLE_ENTITY: "UNSUPPORTED",
    HTTPStatus.TOO_MANY_REQUESTS: "TOOMANYREQUESTS",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
}


def is_oci_path(path: str) -> bool:
    """Whether a path belongs to the OCI distribution API."""
    return path.startswith(_ROOT)


def with_oci_errors(problem: Problem, path: str) -> Problem:
    """Return the problem with the member ``errors`` that OCI clients read."""
    code = _CODES.get(HTTPStatus(problem.status)) or _code_of_absence(problem, path)
    error = {"code": code, "message": problem.detail or problem.title, "detail": {"type": problem.type}}
    return Problem.model_validate({**problem.model_dump(), "errors": [error]})


def _code_of_absence(problem: Problem, path: str) -> str:
    if problem.status != HTTPStatus.NOT_FOUND:
        return "UNKNOWN"
    kinds = {"manifests": "MANIFEST_UNKNOWN", "blobs": "BLOB_UNKNOWN"}
    return kinds.get(path.rpartition("/")[0].rpartition("/")[2], "NAME_UNKNOWN")
