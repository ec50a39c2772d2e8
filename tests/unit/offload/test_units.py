"""Cutting networks into what travels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leandiffusion import ConfigError
from leandiffusion.offload.units import ALIGNMENT, BLOCKS_PER_NETWORK, GRANULARITIES, Cut, cut, spread, weight_bytes


class Net(nn.Module):
    """Layers, a block, an embedding, weights of its own, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.first = nn.Linear(4, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)))
        self.tied = nn.Linear(4, 8)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("places", torch.arange(4))


def placed(pieces: Cut) -> list[torch.Tensor]:
    units = [weight.master for unit in pieces.units for weight in unit.weights]
    return [*units, *(weight.master for weight in pieces.inner), *(module.weight for module in pieces.looked_up)]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_tensor_is_placed_once(granularity: str) -> None:
    net = Net()
    tensors = placed(cut({"net": net}, granularity))
    assert len(tensors) == len({id(t) for t in tensors})
    assert {id(t) for t in tensors} == {id(t) for t in (*net.parameters(), *net.buffers())}


def test_leaves() -> None:
    net = Net()
    pieces = cut({"net": net}, "leaf")
    assert [unit.name for unit in pieces.units] == [
        "net.first", "net.block.0", "net.block.2.0", "net.block.2.1", "net.tied",
    ]  # fmt: skip
    assert pieces.looked_up == [net.words]
    assert {id(w.master) for w in pieces.inner} == {id(net.scale), id(net.places), id(net.first.weight)}


def test_a_component_is_one_unit() -> None:
    nets = {"one": Net(), "two": Net()}
    pieces = cut(nets, "component")
    assert [unit.name for unit in pieces.units] == ["one", "two"]
    assert len(pieces.units[0].modules) == 5


def test_a_weight_that_units_share_stays() -> None:
    net = Net()
    assert net.first.weight.data_ptr() in {w.master.data_ptr() for w in cut({"net": net}, "leaf").inner}
    assert net.first.weight.data_ptr() not in {w.master.data_ptr() for w in cut({"net": net}, "component").inner}


def test_blocks_are_small_parts() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(BLOCKS_PER_NETWORK)))
    assert len(cut({"net": net}, "block").units) == BLOCKS_PER_NETWORK
    assert len(cut({"net": net}, "leaf").units) == 2 * BLOCKS_PER_NETWORK


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_views_into_a_units_memory(form: torch.memory_format) -> None:
    conv = nn.Conv2d(3, 5, 3).to(torch.bfloat16).to(memory_format=form)
    [unit] = cut({"net": conv}, "leaf").units
    memory = torch.empty(unit.nbytes, dtype=torch.uint8)
    unit.read_into(memory)
    begins = [begin for _, begin in unit.places]
    assert all(begin % ALIGNMENT == 0 for begin in begins)
    for weight, begin in unit.places:
        view = weight.view(memory, begin)
        assert torch.equal(view, weight.master)
        assert view.stride() == weight.master.stride()
        assert isinstance(view, nn.Parameter)


def test_an_unknown_granularity() -> None:
    with pytest.raises(ConfigError, match="granularity='layer' is none of leaf"):
        cut({}, "layer")


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_what_stays_is_spread_evenly(fraction: float) -> None:
    units = cut({"net": nn.Sequential(*(nn.Linear(16, 16) for _ in range(40)))}, "leaf").units
    kept = spread(units, fraction)
    assert len(kept) == pytest.approx(40 * fraction, abs=1)
    for half in (units[:20], units[20:]):
        assert sum(unit in kept for unit in half) == pytest.approx(20 * fraction, abs=1)


def test_bytes_of_a_network() -> None:
    assert weight_bytes(nn.Linear(3, 2)) == 4 * 8
