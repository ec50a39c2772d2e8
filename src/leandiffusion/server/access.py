"""Around every request: an id, a line in the log, and counts."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CLIENT_LEFT = 499


class Access:
    """ASGI middleware. The id is the client's `X-Client-Request-Id` where it sends a fit one; the answer has it as
    `X-Request-Id`. (A middleware of Starlette's own kind would hide that a client leaves.)"""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and note what came of it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-client-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "id": request_id}
        start, status = time.perf_counter(), CLIENT_LEFT

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - start)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", None) or "none"
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT") else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        log.info("request", extra={
            "id": request_id, "method": scope["method"], "path": scope["path"], "status": status,
            "seconds": round(seconds, 3), "client": (scope.get("client") or ("",))[0],
        })  # fmt: skip
