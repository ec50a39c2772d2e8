"""The queue, as this server's own contract shows it: where a request stands, and ending it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ..core.wording import show
from .errors import ApiError, Cancelled
from .jobs import Job
from .service import Service


def routes(service: Service) -> APIRouter:
    """A job's id is its request's: `X-Client-Request-Id` where the client sends one, `X-Request-Id` of the answer."""
    router = APIRouter(prefix="/v1/jobs")

    @router.get("", operation_id="jobs")
    async def jobs() -> JSONResponse:
        """The job that runs and those that wait, in order."""
        found = [service.queue.describe(job) for job in service.queue.jobs()]
        return JSONResponse({"object": "list", "data": found})

    @router.get("/{job_id}", operation_id="job")
    async def job(job_id: str) -> JSONResponse:
        """One of them: position, steps done, seconds left."""
        return JSONResponse(service.queue.describe(_find(service, job_id)))

    @router.delete("/{job_id}", operation_id="cancel")
    async def cancel(job_id: str) -> JSONResponse:
        """End it: its request is answered with an error at once, and drawing ends with the next step."""
        found = _find(service, job_id)
        found.cancel(Cancelled())
        return JSONResponse(service.queue.describe(found))

    return router


def _find(service: Service, job_id: str) -> Job:
    job = service.queue.find(job_id)
    if job is None:
        raise ApiError(
            f"no job {show(job_id)} waits or runs: GET /v1/jobs lists those that do.", status=404, code="job_not_found"
        )
    return job
