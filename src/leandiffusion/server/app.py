"""The application: routes, errors in one shape, the OpenAPI document."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from .. import __version__
from ..core.wording import show
from . import a1111_api, jobs_api, openai_api, page, plans_api
from .access import CLIENT_LEFT, Access
from .errors import ApiError, as_api_error
from .guard import Guard, Rules
from .metrics import CONTENT_TYPE
from .service import Service

log = logging.getLogger(__name__)


def make_app(service: Service, rules: Rules = Rules()) -> ASGIApp:  # noqa: B008 - frozen
    """The whole server as an ASGI application."""
    app = FastAPI(
        title="Lean Diffusion", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        exception_handlers={
            ApiError: _told, ClientDisconnect: _left, HTTPException: _http, RequestValidationError: _invalid,
            Exception: _unexpected,
        },
    )  # fmt: skip
    app.include_router(openai_api.routes(service))
    app.include_router(a1111_api.routes(service))
    app.include_router(jobs_api.routes(service))
    app.include_router(plans_api.routes(service))
    app.include_router(page.routes())

    @app.get("/healthz", operation_id="healthz")
    async def healthz() -> JSONResponse:
        """Whether the server takes requests."""
        alive = service.queue.accepts
        return JSONResponse({"status": "ok" if alive else "shutting down"}, 200 if alive else 503)

    @app.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    _document_errors(app)
    return Access(Guard(app, rules), service.metrics)


async def _told(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.to_json(), error.status, error.headers)


async def _left(request: Request, error: Any) -> Response:
    """The client went while its body was read: nobody hears this."""
    return Response(status_code=CLIENT_LEFT)


async def _http(request: Request, error: Any) -> JSONResponse:
    """What Starlette finds wrong before a route is there to do so."""
    path = show(request.url.path)
    words = {
        404: (f"there is no {path} here: see /openapi.json for what there is.", "not_found"),
        405: (f"{path} does not take {request.method}: see /openapi.json.", "method_not_allowed"),
    }  # fmt: skip
    message, code = words.get(error.status_code, (str(error.detail), "invalid_request"))
    told = ApiError(message, status=error.status_code, code=code, headers=error.headers or {})
    return await _told(request, told)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return await _told(request, ApiError(f"{name}: {first['msg']}.", param=name))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    told = as_api_error(error)
    if told.status >= 500:
        log.error("request failed", extra={"id": request.state.id}, exc_info=error)
    return await _told(request, told)


def _document_errors(app: FastAPI) -> None:
    """The OpenAPI document has our error in place of FastAPI's."""
    make = app.openapi
    value = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    properties = {"message": {"type": "string"}, "type": {"type": "string"}, "param": value, "code": value}
    error = {
        "type": "object", "required": ["error"],
        "properties": {"error": {"type": "object", "required": [*properties], "properties": properties}},
    }  # fmt: skip

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = {
                        "description": "What is wrong, and what to do.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                    }
            document["components"] = {"schemas": {"Error": error}}
        return app.openapi_schema or document

    app.openapi = openapi
