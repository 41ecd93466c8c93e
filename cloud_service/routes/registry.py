"""Bundles over HTTP: the reading part of the OCI distribution API, and the list with its report pages.

Blobs and manifests by digest never change, so they may be cached for ever, and their digest is their ETag. Range
requests get 206; a Range that cannot be satisfied gets 416 with the blob's length. References: OCI distribution
specification 1.1, end-2 and end-3; RFC 9110 section 14.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse

from cloud_service.routes.access import Access
from cloud_service.routes.blob_response import BlobResponse
from cloud_service.routes.problems import InvalidRange
from cloud_service.storage.bundles import BundleStore, StoredBlob
from cloud_service.storage.keys import Scope
from shared.api import BundleList
from shared.errors import NotFound

_IMMUTABLE = "private, max-age=31536000, immutable"
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Response])
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


def registry_routes(bundles: BundleStore, access: Access) -> APIRouter:
    """Return the routes."""
    caller = Depends(access.needs(Scope.BUNDLES))
    router = APIRouter(tags=["bundles"], dependencies=[caller])

    @_readable(router, "/v2/")
    def api_version() -> Response:
        """Tell an OCI client that it speaks to a registry."""
        return Response("{}", media_type="application/json", headers=_registry_headers())

    @_readable(router, "/v2/{name:path}/manifests/{reference}")
    def manifest(name: str, reference: str, request: Request) -> Response:
        """Return a manifest by tag or digest."""
        found = bundles.manifest(name, reference)
        return _file(found, request, cache_control=_IMMUTABLE if reference == found.digest else "no-cache")

    @_readable(router, "/v2/{name:path}/blobs/{digest}")
    def blob(name: str, digest: str, request: Request) -> Response:
        """Return a blob of a published bundle, whole or in part."""
        return _file(bundles.blob(name, digest), request, cache_control=_IMMUTABLE)

    @router.get("/v1/bundles", response_model=BundleList)
    def list_bundles() -> BundleList:
        """List the published bundles."""
        return BundleList(bundles=bundles.summaries())

    @_readable(router, "/v1/bundles/{name:path}/report")
    def report(name: str, reference: str = "latest") -> Response:
        """Return the report page of a bundle by tag or digest."""
        path = bundles.report_path(bundles.manifest(name, reference).digest)
        if not path.is_file():
            raise NotFound(f"no report of {name}:{reference}", needed="a bundle that this service prepared")
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    return router


def _readable(router: APIRouter, path: str) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that answers GET and HEAD; the API's description shows GET alone."""

    def register(endpoint: Endpoint) -> Endpoint:
        router.get(path)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return register


def requested_span(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last that a Range header asks of a blob; None without a header.

    Raises:
        InvalidRange: It is malformed, lists several ranges, or lies outside of ``size`` bytes.
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header)
    first, last = match.groups() if match else ("", "")
    if first and int(first) < size and (not last or int(first) <= int(last)):
        return int(first), min(int(last) + 1, size) if last else size
    if not first and last and int(last) > 0 and size > 0:
        return max(0, size - int(last)), size
    raise InvalidRange(header, size)


def _file(blob: StoredBlob, request: Request, *, cache_control: str) -> Response:
    headers = _registry_headers() | {
        "Docker-Content-Digest": blob.digest,
        "ETag": f'"{blob.digest}"',
        "Cache-Control": cache_control,
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    size = blob.path.stat().st_size
    is_same = request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    span = requested_span(request.headers.get("range"), size) if is_same else None
    return BlobResponse(blob.path, size, headers=headers, media_type=blob.media_type, span=span)


def _registry_headers() -> dict[str, str]:
    return {"Docker-Distribution-Api-Version": "registry/2.0"}
