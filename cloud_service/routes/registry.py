"""Bundles over HTTP: the reading part of the OCI distribution API, and the list with its report pages.

Blobs and manifests by digest never change, so they may be cached for ever, and their digest is their ETag. Range
requests get 206; a Range that cannot be satisfied gets 416 with the blob's length. References: OCI distribution
specification 1.1, end-2 and end-3; RFC 9110 section 14.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse

from cloud_service.routes.access import Access
from cloud_service.routes.conditional import is_unchanged
from cloud_service.routes.openapi import BundleNamePath, Digest, Reference, content, file_described
from cloud_service.routes.problems import InvalidRange
from cloud_service.storage.bundles import BundleStore, StoredBlob
from cloud_service.storage.keys import Scope
from shared.api import BundleList
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE
from shared.errors import NotFound

_IMMUTABLE = "private, max-age=31536000, immutable"
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
_BLOB_HEADERS = ("Docker-Content-Digest", "ETag", "Cache-Control")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Response])
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


class BlobResponse(FileResponse):
    """A file in pieces large enough that a fast disk and network are the limit."""

    chunk_size = 1024 * 1024


def registry_routes(bundles: BundleStore, access: Access) -> APIRouter:
    """Return the routes."""
    caller = Depends(access.needs(Scope.BUNDLES))
    router = APIRouter(tags=["bundles"], dependencies=[caller])

    @_readable(router, "/v2/", responses={200: content("application/json")})
    def api_version() -> Response:
        """Tell an OCI client that it speaks to a registry."""
        return Response("{}", media_type="application/json", headers=_registry_headers())

    @_readable(router, "/v2/{name:path}/manifests/{reference}", **file_described(MANIFEST_MEDIA_TYPE, _BLOB_HEADERS))
    def manifest(name: BundleNamePath, reference: Reference, request: Request) -> Response:
        """Return a manifest by tag or digest."""
        found = bundles.manifest(name, reference)
        return _file(found, request, cache_control=_IMMUTABLE if reference == found.digest else "no-cache")

    @_readable(router, "/v2/{name:path}/blobs/{digest}", **file_described("application/octet-stream", _BLOB_HEADERS))
    def blob(name: BundleNamePath, digest: Digest, request: Request) -> Response:
        """Return a blob of a published bundle, whole or in part."""
        return _file(bundles.blob(name, digest), request, cache_control=_IMMUTABLE)

    @router.get("/v1/bundles", response_model=BundleList)
    def list_bundles() -> BundleList:
        """List the published bundles."""
        return BundleList(bundles=bundles.summaries())

    @_readable(router, "/v1/bundles/{name:path}/report", **file_described("text/html"))
    def report(name: BundleNamePath, request: Request, reference: str = "latest") -> Response:
        """Return the report page of a bundle by tag or digest."""
        path = bundles.report_path(bundles.manifest(name, reference).digest)
        if not path.is_file():
            raise NotFound(f"no report of {name}:{reference}", needed="a bundle that this service prepared")
        check_range(request.headers.get("range"), path.stat().st_size)
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    return router


def _readable(router: APIRouter, path: str, **described: Any) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that answers GET and HEAD; the API's description shows GET alone."""

    def register(endpoint: Endpoint) -> Endpoint:
        router.get(path, response_class=Response, **described)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return register


def check_range(header: str | None, size: int) -> None:
    """Do nothing where a Range header is absent or asks for one range of bytes that a blob of ``size`` bytes has.

    Raises:
        InvalidRange: It is malformed, lists several ranges, or lies outside.
    """
    if header is None:
        return
    match = _RANGE.fullmatch(header)
    first, last = match.groups() if match else ("", "")
    is_suffix = not first and last
    is_inside = first and int(first) < size and (not last or int(first) <= int(last))
    if not (is_inside or (is_suffix and int(last) > 0 and size > 0)):
        raise InvalidRange(header, size)


def _file(blob: StoredBlob, request: Request, *, cache_control: str) -> Response:
    headers = _registry_headers() | {
        "Docker-Content-Digest": blob.digest,
        "ETag": f'"{blob.digest}"',
        "Cache-Control": cache_control,
        "X-Content-Type-Options": "nosniff",
    }
    if is_unchanged(",".join(request.headers.getlist("if-none-match")) or None, headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    status = blob.path.stat()
    check_range(request.headers.get("range"), status.st_size)
    return BlobResponse(blob.path, media_type=blob.media_type, headers=headers, stat_result=status)


def _registry_headers() -> dict[str, str]:
    return {"Docker-Distribution-Api-Version": "registry/2.0"}
