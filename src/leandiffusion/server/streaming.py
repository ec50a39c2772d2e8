"""Pictures as server-sent events, under the names of OpenAI's contract.

Between events come comments, which clients pass over: where the request stands, and that the connection lives.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ..core.units import format_seconds
from .encoding import drawn_as, encoded
from .errors import Cancelled, TimedOut
from .jobs import ENDED, Job
from .openai_fields import NO_TOKENS, Streamed
from .orders import Finished, Order, Partial
from .service import Service

HEARTBEAT = 5.0  # seconds


def streamed(service: Service, request: Request, order: Order, fields: Streamed, kind: str) -> StreamingResponse:
    """The answer to a request with `stream`; `kind` is what its events' names begin with. Raises what submitting does,
    before the answer begins."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def hear(event: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = service.submit(request, order, hear)
    job.when_ended(lambda: hear(None))
    return StreamingResponse(
        _events(service, job, order, fields, kind, events), media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )  # fmt: skip


async def _events(
    service: Service, job: Job, order: Order, fields: Streamed, kind: str, events: asyncio.Queue[Any]
) -> AsyncIterator[str]:
    deadline = time.monotonic() + service.limits.timeout
    try:
        while True:
            yield _standing(service, job)
            try:
                async with asyncio.timeout(min(HEARTBEAT, max(deadline - time.monotonic(), 0.01))):
                    event = await events.get()
            except TimeoutError:
                if time.monotonic() >= deadline:
                    job.cancel(TimedOut(service.limits.timeout))
                continue
            if event is None:
                break
            yield _as_text(await service.aside(_event, event, fields, order, kind))
        if job.error is not None:
            yield _as_text({"type": "error", **job.error.to_json()})
    finally:
        job.cancel(Cancelled("the client left."))  # nothing, where it has ended


def _standing(service: Service, job: Job) -> str:
    if job.state in ENDED:
        return ""
    told, left = service.queue.describe(job), service.queue.seconds_left(job)
    about = "" if left is None else f", about {format_seconds(left)} left"
    return f": {told['state']}, {told['position']} before it, step {job.done} of {job.steps}{about}\n\n"


def _event(event: Finished | Partial, fields: Streamed, order: Order, kind: str) -> dict[str, Any]:
    image = event.drawn.image if isinstance(event, Finished) else event.image
    body: dict[str, Any] = {
        "created_at": int(time.time()), "background": "opaque", "output_format": fields.output_format,
        "quality": fields.quality, "size": f"{image.width}x{image.height}", "index": event.index,
    }  # fmt: skip
    how = fields.output_format, fields.output_compression
    if isinstance(event, Partial):
        named = {"type": f"{kind}.partial_image", "partial_image_index": event.number}
        return {**named, "b64_json": encoded(image, *how), **body}
    named = {"type": f"{kind}.completed", "seed": event.drawn.record.recipe.seed, "usage": NO_TOKENS}
    return {**named, "b64_json": drawn_as(event.drawn, *how), **body}


def _as_text(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"
