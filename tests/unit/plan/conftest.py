"""A profile that nobody measured, so that plans are the same everywhere and made at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import folders  # noqa: F401 - a fixture of these tests too
from tests.unit.plan.profiles import CPU, a_profile

from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.profile import DeviceProfile
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize


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
