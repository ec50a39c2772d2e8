"""A real server on the packaged model, with a profile that nobody measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.soak import quick
from tests.soak.quick import Running

from leandiffusion.server.guard import Rules
from leandiffusion.server.service import Limits, Service

QUICK = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 2, "seed": 1}
LONG = {**QUICK, "num_inference_steps": 1000}


@pytest.fixture(scope="module")
def on_paper() -> Iterator[None]:
    """Plans are the same everywhere, and made at once."""
    with quick.on_paper():
        yield


@pytest.fixture(scope="module")
def running(on_paper: None) -> Iterator[Running]:
    """Two names for the packaged model."""
    made = Running(Service({"demo": "demo", "other": "demo"}, limits=Limits(queue=40)), Rules())
    yield made
    made.end()


def client_of(running: Running, **options: Any) -> httpx2.Client:
    """Plain requests to the server."""
    return httpx2.Client(base_url=running.url, timeout=120, **options)


@pytest.fixture
def client(running: Running) -> Iterator[httpx2.Client]:
    with client_of(running) as client:
        yield client
