"""What a process has in memory besides weights, asked again between calls. Memory is measured, not given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from leandiffusion.modules.text import CLIPTextModel
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.policy import Policy
from leandiffusion.offload.units import GRANULARITIES
from leandiffusion.plan.floor import floor_here
from leandiffusion.techniques.offloading import run_through
from leandiffusion.weights.load import open_network

from .profiles import CPU, a_profile

WIDTH = 1024
LARGEST = 4 * WIDTH * WIDTH * 4
"""Bytes of the network's largest layer, of which two are in the ring."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, wide = tmp_path_factory.mktemp("text"), 4 * WIDTH
    network = CLIPTextModel(64, hidden_size=WIDTH, intermediate_size=wide, num_hidden_layers=2)
    network(torch.ones(1, 8, dtype=torch.int64))  # what only computing brings is there before anything is measured
    network.save_pretrained(folder)
    return folder


def floor(*networks: nn.Module) -> int:
    return floor_here(a_profile(floor=0), networks, has_computed=True)


@torch.no_grad()
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_weights_count_for_nothing_and_neither_does_what_they_travel_through(
    folder: Path, granularity: str, fraction: float
) -> None:
    network = open_network(CLIPTextModel, folder, on_disk=True)
    before = floor(network)
    engine = Engine({"text_encoder": network}, Policy(CPU, granularity, fraction))
    undo = run_through(engine, CPU)
    network(torch.ones(1, 8, dtype=torch.int64))
    held, after = engine.held_bytes, floor(network)
    undo()
    engine.close()
    assert held >= LARGEST
    assert abs(after - before) < LARGEST / 2


def test_factors_of_loras_count_as_weights_do() -> None:
    layer = nn.Linear(8, 8)
    before = floor(layer)
    layer.register_buffer("down", torch.ones(LARGEST, dtype=torch.uint8))
    assert floor(layer) - before < LARGEST / 2
