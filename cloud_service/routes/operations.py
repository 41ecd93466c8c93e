"""For those who run the service: is it alive, can it work, what does it do.

``/healthz`` and ``/readyz`` need no key, as load balancers have none; they tell no names, and answer HEAD too.
``/metrics`` and ``/openapi.json`` need any key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from cloud_service.routes.access import Access
from cloud_service.routes.metrics import RequestMetrics
from cloud_service.routes.openapi import NEEDS_NO_KEY, describe_api, problems
from cloud_service.routes.problems import NotReady
from shared.errors import ZoError

Check = Callable[[], None]


def operation_routes(checks: Mapping[str, Check], metrics: RequestMetrics, access: Access) -> APIRouter:
    """Return the routes.

    Args:
        checks: What must work before the service is ready: name → function that raises where it does not.
        metrics: What ``/metrics`` shows.
        access: Who may call.
    """
    router = APIRouter(tags=["operations"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", openapi_extra=NEEDS_NO_KEY)
    def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", openapi_extra=NEEDS_NO_KEY, responses=problems(503))
    def readyz() -> dict[str, str]:
        """Say whether database, store, disk and workers can do their part."""
        faults = {name: fault for name, check in checks.items() if (fault := _fault(check)) is not None}
        if faults:
            raise NotReady(
                "; ".join(f"{name}: {fault}" for name, fault in faults.items()),
                needed=f"all of {', '.join(checks)}",
                next_step="see the service's log",
            )
        return dict.fromkeys(checks, "ok")

    @router.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(access.needs(None))])
    def show_metrics() -> Response:
        """Show the metrics in Prometheus's text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/openapi.json", dependencies=[Depends(access.needs(None))])
    def openapi(request: Request) -> JSONResponse:
        """Describe this API as an OpenAPI document."""
        return JSONResponse(describe_api(request.app))

    return router


def _fault(check: Check) -> str | None:
    try:
        check()
    except ZoError as error:
        return error.found
    except (OSError, SQLAlchemyError) as error:
        return type(error).__name__
    return None
