"""Budgets as people say them, and what is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion.core.errors import ConfigError
from leandiffusion.measure.environment import total_memory
from leandiffusion.measure.memory import rss
from leandiffusion.plan.budget import ERROR, RESERVE, Budget, free_now, in_all

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("said", "expected"), [("2GiB", 2 << 30), ("512 MB", 512 * 10**6), (1000, 1000), ({"cpu": "1GiB"}, 1 << 30)]
)
def test_sizes(said: Any, expected: int) -> None:
    budget = Budget.of(said, CPU)
    assert (budget.device, budget.host, budget.given) == (expected, None, True)
    assert budget.fits(0, 10**15)
    assert not budget.fits(expected, 0)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("2 gigs", "is not a size"),
        ("-1GiB", "is not a size"),
        ("0", "leaves nothing"),
        (1.5, "is not a size"),
        (True, "is not a size"),
        ({}, "name a size for each device"),
        ({"cuda": "2GiB"}, "memory names 'cuda'"),
        ({"cpu": None}, "is not a size"),
    ],
)
def test_what_is_no_budget(said: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Budget.of(said, CPU)


def test_room_is_left_for_errors_of_the_prediction() -> None:
    budget = Budget.of("1GiB", CPU)
    most = int((1 << 30) * (1 - ERROR)) - RESERVE
    assert budget.fits(most - 1, 0)
    assert not budget.fits(most + 2, 0)
    assert budget.to_ask_for(most - 1) <= 1 << 30 < budget.to_ask_for(most + 2)
    assert Budget.of({"cpu": budget.to_ask_for(most)}, CPU).fits(most, 0)
    bare = Budget(1 << 30)
    assert bare.fits(1 << 30, 0)
    assert not bare.fits((1 << 30) + 1, 0)


def test_more_than_there_is_warns() -> None:
    with pytest.warns(UserWarning, match="is more than cpu has"):
        Budget.of("1000TiB", CPU)


def test_none_means_what_is_free_less_a_margin() -> None:
    budget, own, everything = Budget.of(None, CPU), rss(), total_memory()
    assert own is not None
    assert everything is not None
    assert not budget.given
    assert budget.device is not None
    assert own < budget.device < everything
    assert "less 5%" in str(budget)
    assert in_all(CPU) == everything
    free = free_now(CPU)
    assert free is not None
    assert budget.device < free


def test_two_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leandiffusion.plan.budget.free_memory", lambda device: (3 << 30, 4 << 30))
    budget = Budget.of({"cuda": "2GiB", "cpu": "8GiB"}, GPU)
    assert (budget.device, budget.host) == (2 << 30, 8 << 30)
    assert not budget.fits(1 << 30, 9 << 30)
    alone = Budget.of("2GiB", GPU)
    assert alone.device == 2 << 30
    assert alone.host is not None  # what the host has free
    free = Budget.of({"cpu": "8GiB"}, GPU)
    assert free.device == int((3 << 30) * 0.95)
    with pytest.warns(UserWarning, match="more than cuda has"):
        Budget.of("5GiB", GPU)
