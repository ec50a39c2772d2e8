"""Which devices are overlapped and timed, and what happens where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion.device import streams
from leandiffusion.device.streams import AcceleratorStreams, can_be_timed, seconds_between, streams_of, tick
from leandiffusion.offload import prefetch
from leandiffusion.offload.prefetch import InTurn, StreamPrefetcher, ThreadPrefetcher, prefetcher_for

CPU, MPS, NEW = torch.device("cpu"), torch.device("mps"), torch.device("privateuseone")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu"])
def test_known_accelerators_are_overlapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(streams_of(torch.device(name)), AcceleratorStreams)
    assert streams.why_no_overlap(torch.device(name)) is None
    monkeypatch.setattr(AcceleratorStreams, "new", lambda self: object())
    assert isinstance(prefetcher_for(torch.device(name)), StreamPrefetcher)


def test_on_a_cpu_a_thread_brings_what_is_brought_ahead() -> None:
    assert isinstance(prefetcher_for(CPU), ThreadPrefetcher)
    assert isinstance(prefetcher_for(CPU, ahead=False), InTurn)


@pytest.mark.parametrize("device", [MPS, NEW])
def test_an_accelerator_whose_order_is_not_known_gets_no_overlap_and_a_note(device: torch.device) -> None:
    assert streams_of(device) is None
    assert device.type in str(streams.why_no_overlap(device))
    assert isinstance(prefetcher_for(device), InTurn)
    assert not can_be_timed(device)


def test_in_turn_each_copy_stands_between_two_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(prefetch, "synchronize", said.append)
    prefetcher = InTurn(MPS)
    prefetcher.wait(prefetcher.start(lambda: said.append("fill"), [prefetcher.mark()]))
    assert said == [MPS, "fill", MPS]


def test_a_cpu_is_done_when_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert streams_of(CPU) is None
    assert streams.why_no_overlap(CPU) is None
    prefetcher = prefetcher_for(CPU)
    assert isinstance(prefetcher, ThreadPrefetcher)
    prefetcher.close()
    streams.synchronize(CPU)  # needs no accelerator
    assert 0 <= seconds_between(tick(CPU), tick(CPU)) < 10


def test_an_accelerator_is_waited_for_by_torchs_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", said.append)
    streams.synchronize(MPS)
    assert said == [MPS]
