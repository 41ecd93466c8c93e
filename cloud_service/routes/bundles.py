"""What is done with published bundles besides fetching them: list, read the report, retag, delete, audit.

A list is answered page by page: ``next`` is the ``after`` of the next page. Changes need a key with the scope ``jobs``
whose patterns fit the name, or an admin key; each writes its audit row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse

from cloud_service.routes.access import Access
from cloud_service.routes.openapi import BundleNamePath, Digest, TagInPath, file_described, problems
from cloud_service.routes.registry import requested_span
from cloud_service.storage.audit import AuditLog, Author
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.catalog import Catalog
from cloud_service.storage.keys import Scope
from shared.api import AuditList, BundleList, PublishedTag, TagMove
from shared.errors import NotFound

_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
_LARGEST_ID = 2**63 - 1
Limit = Annotated[int, Query(ge=1, le=200)]


def bundle_routes(
    bundles: BundleStore, catalog: Catalog, log: AuditLog, access: Access, *, check_name: Callable[[str, str], None]
) -> APIRouter:
    """Return the routes.

    Args:
        bundles: Changes what is published.
        catalog: Reads it.
        log: Who changed it.
        access: Who may call.
        check_name: Refuses a key, by its id, that may not publish under a name.
    """
    router = APIRouter(tags=["bundles"])
    reader, publisher = Depends(access.needs(Scope.BUNDLES)), Depends(access.needs(Scope.JOBS))
    admin = Depends(access.needs(Scope.ADMIN))

    @router.get("/v1/bundles", dependencies=[reader], response_model=BundleList)
    def list_bundles(
        after: Annotated[str | None, Query(max_length=400)] = None,
        limit: Limit = 50,
        name: Annotated[str | None, Query(max_length=200)] = None,
    ) -> BundleList:
        """List the published bundles, by name and tag."""
        found = catalog.page(after=after, limit=limit + 1, name=name)
        page = found[:limit]
        return BundleList(bundles=page, next=f"{page[-1].name}:{page[-1].tag}" if len(found) > limit else None)

    @router.get(
        "/v1/bundles/{name:path}/report", dependencies=[reader], response_class=Response, **file_described("text/html")
    )
    @router.head("/v1/bundles/{name:path}/report", dependencies=[reader], include_in_schema=False)
    def report(name: BundleNamePath, request: Request, reference: str = "latest") -> Response:
        """Return the report page of a bundle by tag or digest."""
        path = bundles.report_path(catalog.manifest(name, reference).digest)
        if not path.is_file():
            raise NotFound(f"no report of {name}:{reference}", needed="a bundle that this service prepared")
        requested_span(request.headers.get("range"), path.stat().st_size)
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    @router.get("/v1/bundles/{name:path}/tags/{tag}/history", response_model=AuditList, responses=problems(404))
    def history(
        name: BundleNamePath,
        tag: TagInPath,
        owner: str = publisher,
        after: Annotated[int | None, Query(ge=0, le=_LARGEST_ID)] = None,
        limit: Limit = 50,
    ) -> AuditList:
        """List the changes of a tag, newest first; for those who may publish under the name."""
        check_name(owner, name)
        return _audit_page(log, after, limit, name=name, tag=tag)

    @router.post("/v1/bundles/{name:path}/tags/{tag}", response_model=PublishedTag, responses=problems(404, 409))
    def retag(
        name: BundleNamePath, tag: TagInPath, move: TagMove, request: Request, owner: str = publisher
    ) -> PublishedTag:
        """Let a tag name another bundle that was published under the same name, or what it named before."""
        return bundles.retag(name, tag, move.digest, _author(request, owner))

    @router.delete("/v1/bundles/{name:path}/tags/{tag}", status_code=204, responses=problems(404, 409))
    def delete_tag(name: BundleNamePath, tag: TagInPath, request: Request, owner: str = publisher) -> None:
        """Remove a tag; its bundle stays readable by digest."""
        bundles.delete_tag(name, tag, _author(request, owner))

    @router.delete("/v1/bundles/{name:path}/digests/{digest}", status_code=204, responses=problems(404, 409))
    def delete_bundle(name: BundleNamePath, digest: Digest, request: Request, owner: str = publisher) -> None:
        """Remove a bundle from a name, with every tag that names it."""
        bundles.delete_bundle(name, digest, _author(request, owner))

    @router.get("/v1/audit", dependencies=[admin], response_model=AuditList)
    def list_changes(
        after: Annotated[int | None, Query(ge=0, le=_LARGEST_ID)] = None,
        limit: Limit = 50,
        name: Annotated[str | None, Query(max_length=200)] = None,
    ) -> AuditList:
        """List the changes of what is published and of the keys, newest first."""
        return _audit_page(log, after, limit, name=name)

    return router


def peer_of(request: Request) -> str | None:
    """Return the address that a request comes from."""
    return None if request.client is None else request.client.host


def _author(request: Request, owner: str) -> Author:
    return Author(key_id=owner, peer=peer_of(request))


def _audit_page(
    log: AuditLog, after: int | None, limit: int, *, name: str | None = None, tag: str | None = None
) -> AuditList:
    found = log.newest(after=after, limit=limit + 1, name=name, tag=tag)
    page = found[:limit]
    return AuditList(entries=page, next=page[-1].id if len(found) > limit else None)
