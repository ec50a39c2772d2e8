"""A profile that nobody measured, so that plans are the same everywhere and made at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import folders  # noqa: F401 - a fixture of these tests too

from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.profile import DeviceProfile
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize

CPU = torch.device("cpu")


def a_profile(fetch: float = 1e9, slow_half: float = 10.0, floor: int = 200 << 20) -> DeviceProfile:
    """100 GFLOP/s in float32; half precision is so many times slower."""

    def rates(times: float) -> dict[str, tuple[tuple[float, float], ...]]:
        return dict.fromkeys(
            ("matmul", "conv", "attention"), ((1.0, 10000000000.0 / times), (100.0, 100000000000.0 / times))
        )

    return DeviceProfile(
        taken_under={"device": "cpu: paper", "threads": "2", "cores": "2"}, date="2026-01-01T00:00:00+00:00",
        products={"float32": rates(1.0), "bfloat16": rates(slow_half)},
        reorder=dict.fromkeys(("float32", "bfloat16"), ((1e6, 1e-3),)),
        moves=dict.fromkeys(("kept", "fresh"), ((1e4, 1e10), (1e8, 1e10))), overhead=1e-6,
        fetch=dict.fromkeys(("float32", "bfloat16"), fetch), floor=floor, computing=20 << 20,
    )  # fmt: skip


@pytest.fixture
def profile() -> DeviceProfile:
    return a_profile()


@pytest.fixture
def predictor(folders: Any) -> Callable[..., Predictor]:  # noqa: F811
    """Of a tiny pipeline's calls: `predictor(64, 64, batch=2, profile=…)`."""

    def make(
        height: int = 64, width: int = 64, batch: int = 1, *, profile: DeviceProfile | None = None, **call: Any
    ) -> Predictor:
        blueprint = Blueprint.of_checkpoint(folders["sd1"], torch.float32, CPU)
        return Predictor(blueprint, CallSize(height, width, batch, **call), 20, profile or a_profile())

    return make
