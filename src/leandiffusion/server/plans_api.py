"""What a picture would take, before anybody draws it: /v1/plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from .errors import ApiError
from .fields import Fields, document, read_json
from .models import STEPS, seconds_for
from .openai_fields import Memory, ModelName, Pictures, Size, Steps, bytes_of
from .service import Service

if TYPE_CHECKING:
    from ..plan.plan import Plan, Settings


class Planned(Fields):
    """POST /v1/plans."""

    model: ModelName = None
    size: Size = "auto"
    memory: Memory = None
    num_inference_steps: Steps = None


def routes(service: Service) -> APIRouter:
    """The one route."""
    router = APIRouter(prefix="/v1")

    @router.post("/plans", openapi_extra=document(Planned), operation_id="plan")
    async def plan(request: Request) -> JSONResponse:
        """The fastest settings for such a picture, what they take, and why not others. Nothing is read or drawn."""
        return JSONResponse(await service.admit(_plan, service, Planned.checked(await read_json(request))))

    return router


def _plan(service: Service, fields: Planned) -> dict[str, Any]:
    from ..run.size import CallSize

    name, _ = service.models.source(fields.model)
    blueprint = service.models.blueprint(name)
    width, height = Pictures(size=fields.size).pixels or (blueprint.side, blueprint.side)
    if width % 8 or height % 8:
        raise ApiError(f"size={fields.size!r}: each side has to be a multiple of 8.", param="size")
    made = service.models.plan(name, CallSize(height, width, 1, not blueprint.is_distilled), bytes_of(fields.memory))
    return described(made, fields.num_inference_steps or STEPS)


def described(plan: Plan, steps: int) -> dict[str, Any]:
    """A plan as clients get it; seconds are for so many steps."""
    return {
        "object": "plan",
        "model": plan.model,
        "size": f"{plan.call.width}x{plan.call.height}",
        "device": plan.device,
        "dtype": plan.dtype,
        "budget": plan.budget,
        "budget_bytes": plan.budget_bytes,
        **_settings(plan.settings, steps),
        "runners_up": [_settings(each, steps) for each in plan.runners_up],
        "unused": dict(plan.unused),
    }


def _settings(settings: Settings, steps: int) -> dict[str, Any]:
    prediction = settings.prediction
    seconds = round(seconds_for(prediction, steps), 2)
    return {"settings": str(settings), "peak_bytes": prediction.peak, "seconds": seconds}
