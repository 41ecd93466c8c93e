"""The reading part of the OCI distribution API: what skopeo, oras and other registries' clients ask.

    end-1  /v2/                    end-8   tags/list, page by page        end-12  referrers: the signatures of a bundle
    end-2  blobs  end-3 manifests  also    /v2/_catalog, page by page

Blobs and manifests by digest never change, so they may be cached for ever, and their digest is their ETag. Range
requests get 206; a Range that cannot be satisfied gets 416 with the blob's length.
References: OCI distribution specification 1.1; RFC 9110 sections 8.8, 12.5.1 and 14.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from cloud_service.routes.access import Access
from cloud_service.routes.blob_response import BlobResponse
from cloud_service.routes.conditional import is_unchanged
from cloud_service.routes.openapi import BundleNamePath, Digest, Reference, content, file_described, problems
from cloud_service.routes.problems import InvalidRange
from cloud_service.storage.catalog import Catalog, StoredBlob
from cloud_service.storage.keys import Scope
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE
from shared.errors import InvalidRequest

INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"
_IMMUTABLE = "private, max-age=31536000, immutable"
_LARGEST_PAGE = 1000
_BLOB_HEADERS = ("Docker-Content-Digest", "ETag", "Cache-Control")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Response])
PageSize = Annotated[int, Query(ge=0, le=2**31)]
After = Annotated[str | None, Query(max_length=400)]
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


class NotAcceptable(InvalidRequest):
    """The client accepts no media type that the manifest has."""

    status = 406


def registry_routes(catalog: Catalog, access: Access) -> APIRouter:
    """Return the routes."""
    caller = Depends(access.needs(Scope.BUNDLES))
    router = APIRouter(tags=["bundles"], dependencies=[caller])

    @_readable(router, "/v2/", responses={200: content("application/json")})
    def api_version() -> Response:
        """Tell an OCI client that it speaks to a registry."""
        return _document({})

    @_readable(router, "/v2/_catalog", responses={200: content("application/json")})
    def names(request: Request, n: PageSize = 100, last: After = None) -> Response:
        """List the names that bundles are published under."""
        limit = min(n, _LARGEST_PAGE)
        found = catalog.names(after=last, limit=limit + 1)
        return _document({"repositories": found[:limit]}, headers=_link(request, found, limit))

    @_readable(router, "/v2/{name:path}/tags/list", responses={200: content("application/json"), **problems(404)})
    def tags(name: BundleNamePath, request: Request, n: PageSize = 100, last: After = None) -> Response:
        """List the tags of a name, with those of its signatures."""
        limit = min(n, _LARGEST_PAGE)
        found = catalog.tags(name, after=last, limit=limit + 1)
        return _document({"name": name, "tags": found[:limit]}, headers=_link(request, found, limit))

    @_readable(
        router,
        "/v2/{name:path}/referrers/{digest}",
        responses={200: content(INDEX_MEDIA_TYPE), **problems(404)},
    )
    def referrers(
        name: BundleNamePath, digest: Digest, artifact_type: Annotated[str | None, Query(alias="artifactType")] = None
    ) -> Response:
        """List the signatures of a bundle, as an OCI image index; empty where there is none."""
        found = catalog.signatures_of(name, digest)
        entries = [{**json.loads(entry.to_bytes()), "artifactType": catalog.artifact_type(entry)} for entry in found]
        headers = {}
        if artifact_type is not None:
            entries = [entry for entry in entries if entry["artifactType"] == artifact_type]
            headers = {"OCI-Filters-Applied": "artifactType"}
        index = {"schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": entries}
        return _document(index, media_type=INDEX_MEDIA_TYPE, headers=headers)

    @_readable(
        router, "/v2/{name:path}/manifests/{reference}", **file_described(MANIFEST_MEDIA_TYPE, _BLOB_HEADERS, 406)
    )
    def manifest(name: BundleNamePath, reference: Reference, request: Request) -> Response:
        """Return a manifest by tag or digest."""
        found = catalog.manifest(name, reference)
        check_accepted(request.headers.getlist("accept"), found.media_type)
        return _file(found, request, cache_control=_IMMUTABLE if reference == found.digest else "no-cache")

    @_readable(router, "/v2/{name:path}/blobs/{digest}", **file_described("application/octet-stream", _BLOB_HEADERS))
    def blob(name: BundleNamePath, digest: Digest, request: Request) -> Response:
        """Return a blob of a published bundle, whole or in part."""
        return _file(catalog.blob(name, digest), request, cache_control=_IMMUTABLE)

    return router


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


def check_accepted(headers: Sequence[str], media_type: str) -> None:
    """Do nothing where the Accept headers are absent or one of their ranges fits ``media_type``.

    Raises:
        NotAcceptable: None fits.
    """
    ranges = [part.strip().lower() for header in headers for part in header.split(",") if part.strip()]
    fitting = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    for offered in ranges:
        name, *parameters = (word.strip() for word in offered.split(";"))
        if name in fitting and not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            return
    if ranges:
        raise NotAcceptable(
            f"Accept: {', '.join(ranges)[:200]}", needed=media_type, next_step="accept OCI manifests", param="Accept"
        )


def _readable(router: APIRouter, path: str, **described: Any) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that answers GET and HEAD; the API's description shows GET alone."""

    def register(endpoint: Endpoint) -> Endpoint:
        router.get(path, response_class=Response, **described)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return register


def _file(blob: StoredBlob, request: Request, *, cache_control: str) -> Response:
    etag = f'"{blob.digest}"'
    headers = {
        "Docker-Distribution-Api-Version": "registry/2.0",
        "Docker-Content-Digest": blob.digest,
        "ETag": etag,
        "Cache-Control": cache_control,
        "X-Content-Type-Options": "nosniff",
    }
    if is_unchanged(",".join(request.headers.getlist("if-none-match")) or None, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    size = blob.path.stat().st_size
    is_same = request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    span = requested_span(request.headers.get("range"), size) if is_same else None
    return BlobResponse(blob.path, size, headers=headers, media_type=blob.media_type, span=span)


def _document(
    fields: dict[str, Any], *, media_type: str = "application/json", headers: dict[str, str] | None = None
) -> Response:
    own = {"Docker-Distribution-Api-Version": "registry/2.0", "Cache-Control": "no-cache"}
    return Response(json.dumps(fields), media_type=media_type, headers=own | (headers or {}))


def _link(request: Request, found: list[str], limit: int) -> dict[str, str]:
    """Return the header that leads to the next page, where there is one."""
    if limit == 0 or len(found) <= limit:
        return {}
    query = urlencode({"n": limit, "last": found[limit - 1]})
    return {"Link": f'<{request.url.path}?{query}>; rel="next"'}
