"""A server that draws in no time, behind everything else that a real one has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from PIL import Image
from tests.unit.plan.profiles import a_profile

from leandiffusion.core.errors import BudgetError
from leandiffusion.drawing.opening import Drawn
from leandiffusion.drawing.record import record_of
from leandiffusion.plan import floor, profile
from leandiffusion.server import orders
from leandiffusion.server.app import make_app
from leandiffusion.server.guard import Rules
from leandiffusion.server.models import Models
from leandiffusion.server.orders import Finished, Order, Partial
from leandiffusion.server.service import Limits, Service


class Running:
    """A server in a thread: `url` to reach it, `service` behind it."""

    def __init__(self, service: Service, rules: Rules = Rules()) -> None:  # noqa: B008 - frozen
        self.service = service
        self.server = uvicorn.Server(
            uvicorn.Config(make_app(service, rules), port=0, log_config=None, lifespan="off", ws="none")
        )
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        self.service.queue.close(20)
        self.server.should_exit = True
        self._thread.join(20)


@contextmanager
def on_paper() -> Iterator[pytest.MonkeyPatch]:
    """Plans are the same everywhere, and made at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "profile_of", lambda *args, **options: a_profile())
        patch.setattr(floor, "floor_here", lambda profile, networks, has_computed: profile.floor)
        yield patch


@contextmanager
def quick_server(limits: Limits = Limits()) -> Iterator[Running]:  # noqa: B008 - frozen
    """Nothing is planned or drawn: pictures are of one colour, and more than a million pixels do not fit."""
    with on_paper() as patch:
        from leandiffusion.run.size import CallSize

        one_plan = Models({"demo": "demo"}).plan("demo", CallSize(128, 128))

        def plan(models: Models, name: str, call: CallSize, memory: int | None = None) -> Any:
            if call.height * call.width > 1_000_000:
                raise BudgetError("it does not fit: the least that would do is 1 GiB.")
            return replace(one_plan, call=call)

        patch.setattr(Models, "plan", plan)
        patch.setattr(orders, "draw", _draw)
        running = Running(Service({"demo": "demo", "other": "demo"}, limits=limits))
        try:
            yield running
        finally:
            running.end()


class _Pipeline:
    dtype, device, plan, techniques, last_times = "torch.float32", "cpu", None, (), {}
    scheduler = SimpleNamespace(config={})

    def __call__(self, num_inference_steps: int = 50, guidance_scale: float = 7.5, strength: float = 0.8) -> None: ...


def _draw(order: Order, models: Models, job: Any) -> list[Drawn]:
    drawn: list[Drawn] = []
    for index in range(order.count):
        job.next_picture()
        options = replace(order.options, seed=order.options.seed + index)
        image = Image.new("RGB", (8, 8), (options.seed % 256, 0, 0))
        for number in range(order.shown):
            job.step()
            job.tell(Partial(index, number, image))
        drawn.append(Drawn(image, record_of(_Pipeline(), options, image.size, {}, order.given)))
        job.tell(Finished(index, drawn[-1]))
    return drawn
