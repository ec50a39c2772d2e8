"""Whole networks whose weights come as late as the waits allow: the same numbers, whatever failed before."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.device.late import Event, LateDevice, Queue
from tests.unit.offload.test_engine import UNET, VAE, compute, open_both, same
from torch import Tensor

from leandiffusion import AutoencoderKL, UNet2DConditionModel
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.policy import Policy
from leandiffusion.offload.prefetch import StreamPrefetcher
from leandiffusion.offload.units import GRANULARITIES, Unit
from leandiffusion.techniques.offloading import run_through

CPU = torch.device("cpu")


class Prompt(LateDevice):
    """Copies take their time; computation is done when it was asked for, as these networks really run on the CPU."""

    def wait(self, stream: Queue, event: Event) -> None:
        super().wait(stream, event)
        if stream.computes:
            self.finish(stream)

    def mark(self, stream: Queue) -> Event:
        event = super().mark(stream)
        if stream.computes:
            self.finish(stream)
        return event


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def travelling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], Engine]]:
    """Networks whose weights come from disk by a late device's copies, into memory that holds NaN until then."""

    def start(granularity: str, order: str, seed: int = 0) -> tuple[dict[str, Any], Engine]:
        device, read = Prompt(order, seed), Unit.read_into

        def late(unit: Unit, memory: Tensor) -> None:
            device.launch(lambda: memory.fill_(0xFF))
            device.launch(lambda: read(unit, memory))

        monkeypatch.setattr(Unit, "read_into", late)
        networks = open_both(folder, on_disk=True)
        engine = Engine(networks, Policy(CPU, granularity), prefetcher=StreamPrefetcher(device))
        run_through(engine, CPU)
        return networks, engine

    return start


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("order", ["copies last", "any"])
def test_the_same_numbers_whatever_happened_before(
    folder: Path, travelling: Callable[..., Any], granularity: str, order: str
) -> None:
    expected = compute(open_both(folder))
    networks, engine = travelling(granularity, order)
    choose = random.Random(0)
    for _ in range(4):
        hook = choose.choice(engine.modules).register_forward_hook(interrupt)
        with suppress(KeyboardInterrupt):
            compute(networks)
        hook.remove()
        if choose.random() < 0.5:
            engine.rest()
        assert same(compute(networks), expected)
    engine.close()


def test_without_the_wait_numbers_are_wrong(folder: Path, travelling: Callable[..., Any]) -> None:
    networks, engine = travelling("leaf", "copies last")
    engine._prefetcher.wait = lambda ticket: None
    assert not same(compute(networks), compute(open_both(folder)))
