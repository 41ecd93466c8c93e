"""What the OpenAPI document says beyond what FastAPI knows: keys, every status, problem+json, the form of names.

A route declares the errors that are its own (``responses=problems(404)``) and, where it needs no key, ``NEEDS_NO_KEY``;
what every route has in common is added by ``describe_api``. The patterns of names in paths are described, not checked:
what does not exist is a 404, whatever it looks like. HEAD is left out: it answers as GET does, without the body.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.openapi.utils import get_openapi

from shared.api import BUNDLE_NAME_PATTERN, PROBLEM_MEDIA_TYPE, TAG_PATTERN, Problem

NEEDS_NO_KEY: dict[str, Any] = {"security": []}
"""``openapi_extra`` of a route that anybody may call."""

_DIGEST = "sha256:[0-9a-f]{64}"
JobId = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{24}$"})]
BundleNamePath = Annotated[str, Path(json_schema_extra={"pattern": BUNDLE_NAME_PATTERN, "maxLength": 200})]
Reference = Annotated[str, Path(json_schema_extra={"pattern": f"{TAG_PATTERN}|^{_DIGEST}$"})]
TagInPath = Annotated[str, Path(json_schema_extra={"pattern": TAG_PATTERN})]
Digest = Annotated[str, Path(json_schema_extra={"pattern": f"^{_DIGEST}$"})]

_ERRORS = {
    400: "The body cannot be parsed.",
    401: "No key, or one that is not valid here.",
    403: "The key does not allow this.",
    404: "What is named does not exist.",
    408: "The request came too slowly.",
    406: "No media type that the client accepts.",
    409: "What is named is in a state that does not allow this.",
    413: "The body is too large.",
    416: "The Range is malformed or outside of the content.",
    422: "A value is malformed or out of range; `param` names it.",
    429: "Too many requests, wrong keys or waiting jobs.",
    500: "An unexpected error; the log has it under the request's id.",
    503: "The service cannot work now.",
    507: "The service's disk is full or not writable.",
}
_OF_EVERY_ROUTE = (500, 503)
_OF_KEYS = (401, 403, 429, 507)
_OF_BODIES = (400, 408, 413, 422)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this service: zo_…"},
    "basic": {"type": "http", "scheme": "basic", "description": "Any user name, the key as password; reads only."},
}
_REFERENCE_TO_PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may answer with these errors."""
    return {
        status: {"description": _ERRORS[status], "content": {PROBLEM_MEDIA_TYPE: _REFERENCE_TO_PROBLEM}}
        for status in statuses
    }


def content(*media_types: str, headers: Iterable[str] = (), description: str = "Successful Response") -> dict[str, Any]:
    """Return the description of a response with one of these media types and all of these headers."""
    return {
        "description": description,
        "content": {media_type: {} for media_type in media_types},
        "headers": {name: {"required": True, "schema": {"type": "string"}} for name in headers},
    }


def file_described(media_type: str, headers: Iterable[str] = (), *errors: int) -> dict[str, Any]:
    """Return the options of a route that sends a file: whole, in part, or not again to a client that has it.

    Args:
        media_type: Of the file.
        headers: Those that every answer with the file has.
        errors: Statuses besides 404 and 416.
    """
    return {
        "responses": {
            200: content(media_type, headers=headers),
            206: content(media_type, headers=(*headers, "Content-Range"), description="The range that was asked for."),
            304: {"description": "The client has it already."},
            **problems(404, 416, *errors),
        },
        "openapi_extra": {"parameters": [_header("Range"), _header("If-None-Match")]},
    }


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document, which is made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=metadata.version("zo-device"),
            description="Prepares language models as signed bundles, and serves these as an OCI registry does.",
            routes=app.routes,
            servers=[{"url": "/"}],
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = _SECURITY_SCHEMES
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which are never sent
            schemas.pop(name, None)
        for method, operation in _operations(document):
            _complete(method, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for operations in document["paths"].values():
        yield from operations.items()


def _complete(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    is_open = operation.setdefault("security", [{"bearer": []}, *([{"basic": []}] if method == "get" else [])]) == []
    statuses = {*_OF_EVERY_ROUTE, *(() if is_open else _OF_KEYS), *(_OF_BODIES if "requestBody" in operation else ())}
    if "parameters" in operation:
        statuses.add(422)
    for status, response in problems(*statuses).items():
        responses[str(status)] = response
    if not is_open:
        responses["401"]["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    operation["responses"] = dict(sorted(responses.items()))
