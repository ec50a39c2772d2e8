"""The page at /: three files, as they are. It loads nothing from anywhere else, and a browser is told so."""

from __future__ import annotations

from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes() -> APIRouter:
    """The page and what it is made of."""
    router = APIRouter()
    for path, (name, kind) in FILES.items():
        _add(router, path, name, kind)
    return router


def _add(router: APIRouter, path: str, name: str, kind: str) -> None:
    async def file() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
        return Response(_read(name), media_type=f"{kind}; charset=utf-8", headers=headers)

    router.add_api_route(path, file, methods=["GET"], include_in_schema=False)


@cache
def _read(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()
