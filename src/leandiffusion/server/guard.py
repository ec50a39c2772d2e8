"""Who may ask: host and origin of the request, API key, size of its body and of all that are in hand."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.units import format_bytes
from ..core.wording import show
from .errors import ApiError

OPEN = ("/healthz", "/", "/page.css", "/page.js")
"""Paths that need no key: a browser shows the page, which then asks for it."""


TOGETHER = 4
"""Of the longest bodies, so many may be in hand at once."""

PATIENCE = 30.0
"""Seconds that the next piece of a body may take to come."""


@dataclass(frozen=True)
class Rules:
    """`hosts` are names by which the server may be called, besides localhost and addresses; `origins` pages of other
    sites that may call it, such as 'https://example.org'. `most_bytes` is the longest body of a request; TOGETHER times
    as many bytes may be in hand at once, of requests that are being read or wait for their answer."""

    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_bytes: int = 32 << 20


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._in_hand = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer the rest with an error."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (error := self._why_not(scope)) is not None:
            await JSONResponse(error.to_json(), error.status, error.headers)(scope, receive, send)
        else:
            body = _Body(self, receive)
            try:
                await self.app(scope, body.receive, send)
            finally:
                self._in_hand -= body.length

    def take(self, length: int, more: int) -> None:
        """So many more bytes of a body of which `length` bytes were there. ApiError where they are too many."""
        self._in_hand += more
        if length + more > self.rules.most_bytes:
            raise self._too_long()
        if self._in_hand > TOGETHER * self.rules.most_bytes:
            raise ApiError(
                f"the requests that are being served hold {format_bytes(TOGETHER * self.rules.most_bytes)}, as much as "
                "they may: send it again in 5 s, with smaller pictures.", status=429, code="too_much_at_once",
                headers={"Retry-After": "5", "Connection": "close"},
            )  # fmt: skip

    def _why_not(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            self._check_body(headers)
        except ApiError as error:
            return error
        return None

    def _check_host(self, headers: Headers) -> None:
        """A name that somebody else's DNS has point here, and pages of other sites, are refused: a browser that visits
        them would otherwise lend them its place in this network."""
        host = headers.get("host", "")
        name = _name_of(host)
        if not (_is_address(name) or name == "localhost" or name in self.rules.hosts):
            raise ApiError(
                f"Host: {show(host)} is not a name of this server: call it by its address, or start it with "
                "--allow-host.", status=403, code="foreign_host",
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is None or origin.rstrip("/") in self.rules.origins:
            return
        if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(
                f"Origin: {show(origin)} may not use this server: start it with --allow-origin to let that page.",
                status=403, code="foreign_origin",
            )  # fmt: skip

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self.rules.api_key
        if key is None or path in OPEN:
            return
        if not hmac.compare_digest(_key_in(headers.get("authorization", "")), key.encode()):
            raise ApiError(
                "the API key is missing or wrong: send the header Authorization: Bearer KEY, with the key that the "
                "server was started with.",
                status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _check_body(self, headers: Headers) -> None:
        packed = headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            raise ApiError(
                f"Content-Encoding: {show(packed)} is not unpacked here: send the body as it is, without that header.",
                status=415, code="unsupported_content_encoding", headers={"Connection": "close"},
            )  # fmt: skip
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.rules.most_bytes:
            raise self._too_long()

    def _too_long(self) -> ApiError:
        return ApiError(
            f"the body has more than {format_bytes(self.rules.most_bytes)}: send smaller pictures.", status=413,
            code="body_too_large", headers={"Connection": "close"},
        )  # fmt: skip


class _Body:
    """A request's body, counted while it comes: bodies need not say how long they are, nor come to their end."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive, self.length = guard, receive, 0
        self._whole = False

    async def receive(self) -> Message:
        """The next message of the request. ApiError for a body that is too long, or stops coming."""
        try:
            async with asyncio.timeout(None if self._whole else PATIENCE):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                f"no more of the body came for {PATIENCE:g} s, after {format_bytes(self.length)}: send all that "
                "Content-Length promises.", status=408, code="body_incomplete", headers={"Connection": "close"},
            ) from None  # fmt: skip
        self._whole = not message.get("more_body", False)
        before, more = self.length, len(message.get("body", b""))
        self.length += more
        self._guard.take(before, more)
        return message


def _name_of(host: str) -> str:
    """Without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _key_in(header: str) -> bytes:
    """Of 'Bearer KEY', or the password of 'Basic …', which clients of A1111's API send."""
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
