"""The routes of OpenAI's interface, and its errors for everything that goes wrong.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /v1/models/{id}   GET /healthz

No page, no documentation route, no CORS header. Knows no model: it calls what understands and answers requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from device_client.serving.answers import Answers, api_error
from device_client.serving.asked import Asked, Asker
from device_client.serving.guard import Guard
from device_client.serving.models import ServedModel, ServedModels
from device_client.serving.openai_api import ApiError, ChatRequest, CompletionRequest
from shared.errors import ZoError
from shared.field_errors import describe_fault

HEALTH = "/healthz"


def make_app(models: ServedModels, asker: Asker, answers: Answers, api_key: str | None) -> FastAPI:
    """Return the application.

    Args:
        models: By name.
        asker: Understands requests.
        answers: Answers them.
        api_key: What callers have to present; None wants nothing.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    app.add_middleware(Guard, api_key=api_key, public_path=HEALTH)
    _add_error_handlers(app)

    @app.get(HEALTH)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_described(served) for served in models.all]}

    @app.get("/v1/models/{name:path}")
    def get_model(name: str) -> dict[str, Any]:
        served = models.find(name)
        if served is None:
            raise ApiError(404, f"The model {name[:80]!r} does not exist here.", code="model_not_found", param="model")
        return _described(served)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answered(await asyncio.to_thread(asker.chat, body), body, request)

    @app.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _answered(await asyncio.to_thread(asker.completion, body), body, request)

    async def _answered(asked: Asked, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        if not body.stream:
            return JSONResponse(await answers.whole(asked, request.is_disconnected))
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        lines: AsyncIterator[str] = await answers.stream(asked, has_usage=has_usage)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})

    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return _shown(error)

    @app.exception_handler(ZoError)
    async def ours(_: Request, error: ZoError) -> JSONResponse:
        return _shown(api_error(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        if error.errors()[0]["type"] == "json_invalid":
            return _shown(_not_json())
        fault = describe_fault(error.errors()[0], places=frozenset({"body"}))
        message = f"{fault.found_in(fault.field or 'the request')}\nNeeded: {fault.needed}"
        return _shown(ApiError(400, message, code="invalid_value", param=fault.field or None))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI could not even decode the body
            return _shown(_not_json())
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return _shown(ApiError(error.status_code, message, code="unknown_url" if error.status_code == 404 else None))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _shown(ApiError(500, f"unexpected {type(error).__name__}", kind="server_error"))


def _not_json() -> ApiError:
    return ApiError(400, "The request is not JSON.\nNeeded: a JSON object in UTF-8", code="invalid_json")


def _described(served: ServedModel) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "zo-device"}


def _shown(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
