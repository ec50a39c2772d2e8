"""A real server on the packaged model, with a profile that nobody measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from tests.unit.plan.profiles import a_profile

from leandiffusion.plan import floor, profile
from leandiffusion.server.app import make_app
from leandiffusion.server.guard import Rules
from leandiffusion.server.service import Limits, Service

QUICK = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 2, "seed": 1}
LONG = {**QUICK, "num_inference_steps": 1000}


class Running:
    """A server in a thread: `url` to reach it, `service` behind it."""

    def __init__(self, service: Service, rules: Rules) -> None:
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

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=120, **options)

    def end(self) -> None:
        self.service.queue.close(20)
        self.server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="module")
def on_paper() -> Iterator[None]:
    """Plans are the same everywhere, and made at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "profile_of", lambda *args, **options: a_profile())
        patch.setattr(floor, "floor_here", lambda profile, networks, has_computed: profile.floor)
        yield


@pytest.fixture(scope="module")
def running(on_paper: None) -> Iterator[Running]:
    """Two names for the packaged model, four requests at most in the queue."""
    made = Running(Service({"demo": "demo", "other": "demo"}, limits=Limits(queue=40)), Rules())
    yield made
    made.end()


@pytest.fixture
def client(running: Running) -> Iterator[httpx2.Client]:
    with running.client() as client:
        yield client
