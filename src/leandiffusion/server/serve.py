"""Running the server: what it binds to, what it says when it starts, how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import BackendUnavailable, BudgetError, ConfigError

API_KEY_VARIABLE = "LEANDIFFUSION_API_KEY"
LAST_STEP = 10.0
"""Seconds that the end of the process waits for a step that is being computed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says."""

    models: tuple[str, ...] = ("demo",)
    host: str = "127.0.0.1"
    port: int = 8188
    api_key: str | None = None
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    memory: Any = None
    allow: str = "exact"
    dtype: str | None = None
    device: str | None = None
    queue: int = 32
    timeout: float = 600.0
    drain: float = 30.0
    most_bytes: int = field(default=32 << 20)


def named_models(texts: Sequence[str]) -> dict[str, str]:
    """'NAME=PATH', or a path or hub id whose last part is the name -> checkpoints by name. ConfigError for a name that
    is there twice, and for one that could not stand in a URL."""
    models: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign:
            name, path = text.rstrip("/").rpartition("/")[2].removesuffix(".safetensors"), text
        if not path or not name or not all(each.isalnum() or each in "-_.:" for each in name):
            raise ConfigError(
                f"{text!r} names no model: write NAME=PATH, with a name of letters, digits and any of -_.: in it."
            )
        if name in models:
            raise ConfigError(f"two models are called {name!r}: give one another name, as NAME=PATH.")
        models[name] = path
    return models


def check_exposed(host: str, api_key: str | None) -> None:
    """ConfigError for a server that others can reach and that asks nobody for a key."""
    if api_key is None and not _is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines draw here: give --api-key KEY too, or set {API_KEY_VARIABLE}."
        )
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or len(api_key) < 8):
        raise ConfigError("the API key has to be of 8 or more printable ASCII characters.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C: then nothing more is accepted, what was is answered, and what is not done after
    `drain` seconds, or at a second signal, is told so. ConfigError for options that cannot be followed,
    WeightsError for models that cannot be opened: before anything is served."""
    models = named_models(options.models)
    check_exposed(options.host, options.api_key)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise BackendUnavailable(f"serving needs {error.name}: python -m pip install 'leandiffusion[serve]'") from error
    from .app import make_app
    from .guard import Rules
    from .logs import to_stderr
    from .models import Settings
    from .service import Limits, Service

    to_stderr()
    settings = Settings(options.memory, options.allow, options.dtype, options.device)
    service = Service(models, settings, Limits(options.timeout, options.queue, options.drain))
    _try_models(service)
    rules = Rules(options.api_key, (options.host, *options.allow_host), options.allow_origin, options.most_bytes)
    config = uvicorn.Config(
        make_app(service, rules), log_config=None, access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=round(options.drain + LAST_STEP), timeout_keep_alive=30, ws="none",
    )  # fmt: skip
    with _bound(options.host, options.port) as listening, _no_second_signal():
        host, port = listening.getsockname()[:2]
        log.info(
            "serving",
            extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", "models": ", ".join(models)},
        )
        _draining(uvicorn.Server(config), service).run(sockets=[listening])
    service.queue.close(LAST_STEP)


def _try_models(service: Any) -> None:
    """What is wrong with a model shows now, and so does how fast the machine is; a budget may still do for small
    pictures."""
    from ..run.size import CallSize

    for name in service.models.sources:
        side = service.models.blueprint(name).side
        try:
            plan = service.models.plan(name, CallSize(side, side))
        except BudgetError as error:
            log.warning("does not fit", extra={"model": name, "about": str(error)})
        else:
            log.info("planned", extra={"model": name, "size": f"{side}x{side}", "settings": str(plan.settings)})


def _draining(server: Any, service: Any) -> Any:
    """The server, which ends jobs before it waits for their requests: after a while, or at a second signal."""
    shut_down, end = server.shutdown, server.handle_exit
    signals = 0

    async def shutdown(sockets: Any = None) -> None:
        log.info("draining", extra={"jobs": len(service.queue.jobs())})
        service.queue.drain()
        asyncio.get_running_loop().call_later(service.limits.drain, service.queue.close)
        await shut_down(sockets)

    def signalled(number: int, frame: Any) -> None:
        nonlocal signals
        signals += 1
        if signals == 2:
            asyncio.get_running_loop().call_soon_threadsafe(service.queue.close)
        else:
            end(number, frame)

    server.shutdown, server.handle_exit = shutdown, signalled
    return server


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there. ConfigError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({reason}): choose another --port or --host."
        ) from error
    with listening:
        yield listening


@contextmanager
def _no_second_signal() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done; it was followed, so it ends here."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def key_of_environment() -> str | None:
    """The API key, where it is not given on the command line, which others on the machine can read."""
    return os.environ.get(API_KEY_VARIABLE) or None
