"""AUTOMATIC1111's API, as far as front ends use it to draw: /sdapi/v1/txt2img, img2img, and what they ask besides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from ..drawing.options import DrawingOptions
from .a1111_fields import Options, PictureInfo, PictureToPicture, TextToPicture
from .a1111_samplers import described
from .encoding import drawn_as
from .errors import ApiError, Cancelled
from .fields import document, read_json
from .jobs import Job, State
from .orders import Finished, Order, prepare
from .service import Service
from .uploads import Upload, check_picture, from_base64

NAMES = {"guidance_scale": "cfg_scale", "scheduler": "sampler_name", "strength": "denoising_strength"}
"""Fields that have other names here than our options have."""

STRENGTH = 0.75
INTERRUPTED = "interrupted"
_NO_LISTS = (
    "sd-vae", "sd-modules", "upscalers", "latent-upscale-modes", "hypernetworks", "face-restorers", "realesrgan-models",
    "loras", "prompt-styles", "script-info", "extensions",
)  # fmt: skip
EMPTY: Mapping[str, Any] = {
    **{name: [] for name in _NO_LISTS}, "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []}, "cmd-flags": {},
}  # fmt: skip
"""What front ends ask for when they begin, and there is none of."""

REFRESHED = ("checkpoints", "vae", "loras", "embeddings")
"""What they have looked for anew: here it stays what the server was started with."""


class Contract:
    """The contract's state, as the web UI has it for all clients: the model that is chosen, and whose jobs are its."""

    def __init__(self, service: Service) -> None:
        self.service, self.model = service, next(iter(service.models.sources))
        self.jobs: dict[str, Job] = {}

    def running(self) -> Job | None:
        """The job of this contract that runs, or is next."""
        return next((job for job in self.service.queue.jobs() if job.id in self.jobs), None)

    async def draw(self, request: Request, fields: TextToPicture, uploads: Mapping[str, Upload]) -> JSONResponse:
        """Draw, and answer; with what was finished where it was interrupted."""
        order = await self.service.admit(partial(self._order, fields, uploads))
        finished: list[Finished] = []
        job = self.service.submit(request, order, lambda event: finished.append(event))
        self.jobs[job.id] = job
        try:
            await self.service.wait(request, job)
        except ApiError as error:
            if error.code != INTERRUPTED:
                raise
        finally:
            del self.jobs[job.id]
        return JSONResponse(await self.service.aside(_body, fields, order, job, finished))

    def _order(self, fields: TextToPicture, uploads: Mapping[str, Upload]) -> Order:
        options = DrawingOptions(
            prompt=fields.prompt, model=fields.override_settings.sd_model_checkpoint or self.model,
            negative_prompt=fields.negative_prompt, prompt_syntax="weighted", steps=fields.steps,
            guidance_scale=fields.cfg_scale, width=fields.width, height=fields.height,
            scheduler=fields.sampler,
            seed=None if fields.seed == -1 else fields.seed,
            **(_of_pictures(fields) if isinstance(fields, PictureToPicture) else {}),
        )  # fmt: skip
        crowded = self.service.queue.length > 0
        return prepare(self.service.models, options, uploads, count=fields.count, names=NAMES, crowded=crowded)


def _of_pictures(fields: PictureToPicture) -> dict[str, Any]:
    strength = STRENGTH if fields.denoising_strength is None else fields.denoising_strength
    if strength == 0:
        raise ApiError("denoising_strength: 0 would draw nothing anew. Use more.", param="denoising_strength")
    if fields.mask is not None and fields.inpaint_full_res:
        return {"strength": strength, "padding_mask_crop": fields.inpaint_full_res_padding}
    return {"strength": strength, "resize": ("stretch", "fill")[fields.resize_mode]}


def routes(service: Service) -> APIRouter:
    """The contract's routes."""
    router, contract = APIRouter(prefix="/sdapi/v1"), Contract(service)
    _drawing(router, contract)
    _asking(router, contract)
    return router


def _drawing(router: APIRouter, contract: Contract) -> None:
    @router.post("/txt2img", openapi_extra=document(TextToPicture), operation_id="txt2img")
    async def txt2img(request: Request) -> JSONResponse:
        """Draw pictures from a text."""
        return await contract.draw(request, TextToPicture.checked(await read_json(request)), {})

    @router.post("/img2img", openapi_extra=document(PictureToPicture), operation_id="img2img")
    async def img2img(request: Request) -> JSONResponse:
        """Draw a picture anew, or with a mask a part of it."""
        fields = PictureToPicture.checked(await read_json(request))
        uploads = {"image": from_base64("init_images", fields.init_images[0])}
        if fields.mask is not None:
            uploads["mask"] = from_base64("mask", fields.mask)
        return await contract.draw(request, fields, uploads)

    @router.get("/progress", operation_id="progress")
    async def progress(skip_current_image: bool = False) -> JSONResponse:
        """How far the drawing is that runs. No picture of it is shown, whatever `skip_current_image` says."""
        return JSONResponse(_progress(contract.service, contract.running()))

    @router.post("/interrupt", operation_id="interrupt")
    async def interrupt() -> JSONResponse:
        """End the drawing that runs; its request is answered with the pictures that are done."""
        job = contract.running()
        if job is not None:
            error = Cancelled("the drawing was interrupted.")
            error.code = INTERRUPTED
            job.cancel(error)
        return JSONResponse({})

    router.add_api_route("/skip", interrupt, methods=["POST"], operation_id="skip")


def _asking(router: APIRouter, contract: Contract) -> None:
    service = contract.service

    @router.get("/samplers", operation_id="samplers")
    async def samplers() -> JSONResponse:
        """The samplers, by their names in the web UI."""
        return JSONResponse(described())

    @router.get("/schedulers", operation_id="schedulers")
    async def schedulers() -> JSONResponse:
        """Schedule types."""
        named = {"automatic": "Automatic", "karras": "Karras"}
        return JSONResponse([{"name": name, "label": label, "aliases": None} for name, label in named.items()])

    @router.get("/sd-models", operation_id="sd_models")
    async def sd_models() -> JSONResponse:
        """The models that are served."""
        empty = dict.fromkeys(("hash", "sha256", "config"))
        names = service.models.sources
        return JSONResponse([{"title": name, "model_name": name, "filename": name, **empty} for name in names])

    @router.get("/options", operation_id="options")
    async def options() -> JSONResponse:
        """The settings that there are."""
        return JSONResponse(
            {"sd_model_checkpoint": contract.model, "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}
        )

    @router.post("/options", openapi_extra=document(Options), operation_id="set_options")
    async def set_options(request: Request) -> JSONResponse:
        """Choose the model that draws where a request names none."""
        chosen = Options.checked(await read_json(request)).sd_model_checkpoint
        if chosen is not None:
            contract.model = service.models.source(chosen)[0]
        return JSONResponse(None)

    @router.post("/png-info", openapi_extra=document(PictureInfo), operation_id="png_info")
    async def png_info(request: Request) -> JSONResponse:
        """The texts that a picture carries."""
        upload = from_base64("image", PictureInfo.checked(await read_json(request)).image)
        return JSONResponse(await service.aside(_texts_in, upload))

    for name, value in EMPTY.items():
        _add_fixed(router, name, "GET", value, "There are none.")
    for name in REFRESHED:
        _add_fixed(router, f"refresh-{name}", "POST", None, "They stay what the server was started with.")


def _add_fixed(router: APIRouter, name: str, method: str, value: Any, about: str) -> None:
    async def fixed() -> JSONResponse:
        return JSONResponse(value)

    router.add_api_route(f"/{name}", fixed, methods=[method], operation_id=name, description=about)


def _progress(service: Service, job: Job | None) -> dict[str, Any]:
    left = None if job is None else service.queue.seconds_left(job)
    running = job is not None and job.state == State.RUNNING
    state = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "" if job is None else job.id,
        "job_count": service.queue.length + running, "job_timestamp": "0", "job_no": 0,
        "sampling_step": 0 if job is None else job.done, "sampling_steps": 0 if job is None else job.steps,
    }  # fmt: skip
    return {
        "progress": 0.0 if job is None else job.done / job.steps, "eta_relative": left or 0.0, "state": state,
        "current_image": None, "textinfo": None,
    }  # fmt: skip


def _body(fields: TextToPicture, order: Order, job: Job, finished: list[Finished]) -> dict[str, Any]:
    kind = fields.override_settings.samples_format or "png"
    records = [event.drawn.record for event in finished]
    seeds = [record.recipe.seed for record in records]
    options, sent = order.options, fields.model_dump(exclude={"init_images", "mask"}, mode="json")
    notes = [*job.notes, *fields.notes]
    info = {
        "prompt": options.prompt, "negative_prompt": options.negative_prompt or "", "seed": options.seed,
        "all_seeds": seeds, "all_prompts": [options.prompt] * len(seeds), "steps": options.steps,
        "all_negative_prompts": [options.negative_prompt or ""] * len(seeds), "width": order.size[0],
        "height": order.size[1], "cfg_scale": records[0].recipe.guidance_scale if records else fields.cfg_scale,
        "batch_size": fields.batch_size, "sd_model_name": options.model, "warnings": notes,
        "infotexts": [record.to_a1111() for record in records], "interrupted": job.state == State.CANCELLED,
    }  # fmt: skip
    format_ = "jpeg" if kind == "jpg" else kind
    images = [drawn_as(event.drawn, format_) for event in finished] if fields.send_images else []
    return {"images": images, "parameters": sent, "info": json.dumps(info)}


def _texts_in(upload: Upload) -> dict[str, Any]:
    """What /png-info answers: the web UI's text, and all texts by name."""
    from PIL import Image

    check_picture("image", upload)
    try:
        with Image.open(BytesIO(upload.data)) as image:
            texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    except Exception:  # Pillow's parsers raise whatever they come across
        raise ApiError("image cannot be read. Is it whole?", param="image", code="invalid_image") from None
    return {"info": texts.pop("parameters", ""), "items": texts, "parameters": {}}
