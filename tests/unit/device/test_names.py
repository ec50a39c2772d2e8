"""Devices by name: what is refused and how, and one path for every accelerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion.core.errors import BackendUnavailable, ConfigError
from leandiffusion.device import names
from leandiffusion.device.host import is_host
from leandiffusion.device.names import check_device, current_device, default_device, device_names, numbered


class Accelerator:
    """torch.accelerator of a machine with two devices of one type, the second of which is current."""

    def __init__(self, kind: str, *, runs: bool = True) -> None:
        self.kind, self.runs = kind, runs

    def current_accelerator(self, check_available: bool = False) -> torch.device | None:
        return torch.device(self.kind) if self.runs or not check_available else None

    def current_device_index(self) -> int:
        return 1

    def device_count(self) -> int:
        return 2


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_every_accelerator_takes_one_path(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "accelerator", Accelerator(kind))
    assert default_device() == torch.device(kind)
    assert current_device() == torch.device(kind, 1)
    assert numbered(0) == torch.device(kind, 0)
    assert device_names() == ["cpu", f"{kind}:0", f"{kind}:1"]


def test_an_accelerator_that_does_not_run_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "accelerator", Accelerator("xpu", runs=False))
    assert default_device() == current_device() == torch.device("cpu")
    assert device_names() == ["cpu"]


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_there(device: Any) -> None:
    assert check_device(device) == torch.device(device)
    assert is_host(device)


@pytest.mark.parametrize("device", ["warp", "", [1], None, 1.5, -1])
def test_what_names_no_device_is_refused(device: Any) -> None:
    with pytest.raises(ConfigError, match="is not a device: use 'cpu', 'cuda', 'cuda:1' or 'mps'") as refused:
        check_device(device)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "mps", 99])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(size: int, *, device: torch.device) -> None:
        raise RuntimeError("invalid device ordinal\nmore that torch says")

    monkeypatch.setattr(names.torch, "empty", empty)
    with pytest.raises(BackendUnavailable, match=r"cannot be used on this machine: invalid device ordinal\. There is "):
        check_device(device)
