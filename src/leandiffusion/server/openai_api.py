"""OpenAI's images contract: /v1/images/generations, edits and variations, and /v1/models."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from ..drawing.options import DrawingOptions
from .encoding import drawn_as
from .fields import document, read_json
from .openai_fields import NO_TOKENS, QUALITY, Edit, Generation, Pictures, Streamed, Variation
from .orders import Order, prepare
from .service import Service
from .streaming import streamed
from .uploads import Upload, read_form

if TYPE_CHECKING:
    from ..drawing.opening import Drawn
    from .jobs import Job

log = logging.getLogger(__name__)

NAMES = {"steps": "num_inference_steps", "width": "size", "height": "size"}
"""Fields that have other names here than our options have."""

VARIATION_STRENGTH = 0.6


def routes(service: Service) -> APIRouter:
    """The contract's routes."""
    router = APIRouter(prefix="/v1")

    @router.post("/images/generations", openapi_extra=document(Generation), operation_id="generate")
    async def generations(request: Request) -> Response:
        """Draw pictures from a text."""
        fields = Generation.checked(await read_json(request))
        return await _answer(service, request, fields, fields.prompt, {}, "image_generation")

    @router.post("/images/edits", openapi_extra=document(Edit, "multipart/form-data"), operation_id="edit")
    async def edits(request: Request) -> Response:
        """Draw a picture anew, or with a mask parts of it."""
        fields = Edit.checked(await read_form(request), strict=False)
        uploads = {"image": fields.image} | ({} if fields.mask is None else {"mask": fields.mask})
        return await _answer(service, request, fields, fields.prompt, uploads, "image_edit", fields.strength)

    @router.post("/images/variations", openapi_extra=document(Variation, "multipart/form-data"), operation_id="vary")
    async def variations(request: Request) -> Response:
        """Draw pictures that are like another."""
        fields = Variation.checked(await read_form(request), strict=False)
        strength = VARIATION_STRENGTH if fields.strength is None else fields.strength
        return await _answer(service, request, fields, fields.prompt, {"image": fields.image}, "image_edit", strength)

    @router.get("/models", operation_id="models")
    async def models() -> JSONResponse:
        """The models that are served."""
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.models.sources]})

    @router.get("/models/{model}", operation_id="model")
    async def model(model: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(_model(service, service.models.source(model)[0]))

    return router


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "leandiffusion"}


async def _answer(
    service: Service, request: Request, fields: Pictures, prompt: str, uploads: Mapping[str, Upload], kind: str,
    strength: float | None = None,
) -> Response:  # fmt: skip
    order = await service.admit(partial(_order, service, fields, prompt, uploads, strength))
    who = fields.safety_identifier or fields.user
    if who is not None:
        log.info("asked", extra={"id": request.state.id, "user": who})
    if isinstance(fields, Streamed) and fields.stream:
        return streamed(service, request, order, fields, kind)
    job, pictures = await service.answer(request, order)
    return JSONResponse(await service.aside(_body, fields, order, job, pictures))


def _order(
    service: Service, fields: Pictures, prompt: str, uploads: Mapping[str, Upload], strength: float | None
) -> Order:
    width, height = fields.pixels or (None, None)
    sized = bool(uploads) and width is not None
    options = DrawingOptions(
        prompt=prompt, model=fields.model, negative_prompt=fields.negative_prompt, prompt_syntax=fields.prompt_syntax,
        steps=fields.num_inference_steps, guidance_scale=fields.guidance_scale, scheduler=fields.scheduler,
        width=width, height=height, seed=fields.seed, strength=strength, resize="fill" if sized else None,
    )  # fmt: skip
    partial_images = (fields.partial_images or 0) if isinstance(fields, Streamed) else 0
    return prepare(
        service.models, options, uploads, count=fields.n, shown=partial_images, names=NAMES,
        share=QUALITY.get(fields.quality, 1.0), crowded=service.queue.length > 0, memory=fields.memory_bytes,
    )  # fmt: skip


def _body(fields: Pictures, order: Order, job: Job, pictures: list[Drawn]) -> dict[str, Any]:
    width, height = pictures[0].image.size
    body = {
        "created": int(time.time()), "background": "opaque", "output_format": fields.output_format,
        "size": f"{width}x{height}", "usage": NO_TOKENS,
        "data": [
            {
                "b64_json": drawn_as(drawn, fields.output_format, fields.output_compression),
                "seed": drawn.record.recipe.seed,
            }
            for drawn in pictures
        ],
    }  # fmt: skip
    if fields.quality != "auto":
        body["quality"] = fields.quality
    if fields.safety_identifier is not None:
        body["safety_identifier"] = fields.safety_identifier
    return body | ({"warnings": job.notes} if job.notes else {})
