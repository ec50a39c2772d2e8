"""The conveyor with prefetchers that run at once, as late as possible, and in a thread: order, reuse, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leandiffusion.offload.arena import OneAtATime, Ring, RingOfEach
from leandiffusion.offload.conveyor import Conveyor
from leandiffusion.offload.prefetch import ThreadPrefetcher
from leandiffusion.offload.units import Unit, cut, ring_sizes

CPU = torch.device("cpu")


class Late:
    """Fills nothing until it is waited for, and then in order: what a busy stream may do."""

    def __init__(self) -> None:
        self.queue: list[tuple[object, Callable[[], None]]] = []
        self.marks = 0
        self.after: list[Sequence[int]] = []
        self.abandoned = 0

    def place(self) -> None:
        return None

    def renew(self) -> None:
        self.queue.clear()

    def mark(self, place: None = None) -> int:
        self.marks += 1
        return self.marks

    def start(self, fill: Callable[[], None], after: Sequence[int]) -> object:
        ticket = object()
        self.queue.append((ticket, fill))
        self.after.append(after)
        return ticket

    def wait(self, ticket: object) -> None:
        while any(ticket is queued for queued, _ in self.queue):
            self.queue.pop(0)[1]()

    def share(self, memory: Tensor) -> None:
        return None

    def abandon(self, ticket: object) -> None:
        self.queue = [entry for entry in self.queue if entry[0] is not ticket]
        self.abandoned += 1

    def close(self, after: Sequence[int] = ()) -> None:
        assert not self.queue


class Eager(Late):
    """Fills at once."""

    def start(self, fill: Callable[[], None], after: Sequence[int]) -> object:
        self.after.append(after)
        fill()
        return object()


class Line:
    """Layers of different sizes whose weights travel, and what was read in which order."""

    def __init__(
        self, prefetcher: Any, sizes: Sequence[int] = (8, 16, 4, 16, 12, 6, 16), room: int = 2, **more: Any
    ) -> None:
        self.net = nn.Sequential(*(nn.Linear(n, n) for n in sizes))
        for i, p in enumerate(self.net.parameters()):
            p.data.fill_(i + 1)
        self.masters = list(self.net.parameters())
        self.units = cut({"net": self.net}, "leaf").units
        self.read: list[str] = []
        self.failure: BaseException | None = None
        largest = max(unit.nbytes for unit in self.units)
        arena = more.pop("arena", None) or Ring(room * largest, CPU)
        self.conveyor = Conveyor(
            self.units, self._read, arena, prefetcher, **more
        )  # fmt: skip

    def _read(self, unit: Unit, memory: Tensor) -> None:
        self.read.append(unit.name)
        if self.failure is not None:
            raise self.failure
        unit.read_into(memory)

    def run(self, order: Sequence[int] | None = None) -> None:
        """Let each unit arrive and check that its memory holds the right numbers, and its layer the masters."""
        for i in range(len(self.units)) if order is None else order:
            load = self.conveyor.arrive(self.units[i])
            assert load.unit is self.units[i]
            for (weight, begin), j in zip(self.units[i].places, (2 * i, 2 * i + 1), strict=True):
                came = weight.view(load.memory, begin)
                assert torch.equal(came, torch.full_like(came, j + 1))
                assert weight.master is self.masters[j]


@pytest.fixture(params=[Late, Eager, ThreadPrefetcher])
def prefetcher(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("room", [1, 2, 3, 100])
def test_every_unit_arrives_with_its_numbers(prefetcher: Any, room: int) -> None:
    line = Line(prefetcher, room=room)
    for _ in range(3):
        line.run()
    line.conveyor.close()


def test_what_follows_is_read_ahead() -> None:
    line = Line(Eager(), room=100)
    line.conveyor.arrive(line.units[0])
    assert line.read == [unit.name for unit in line.units]
    line.run()
    assert len(line.read) == len(line.units)  # everything fits, so nothing is read twice


@pytest.mark.parametrize("prefetcher", [Eager(), ThreadPrefetcher()], ids=["eager", "thread"])
def test_every_network_has_a_ring_of_its_own(prefetcher: Any) -> None:
    """And nothing is read ahead for which there is no memory yet."""
    nets = {name: nn.Sequential(*(nn.Linear(n, n) for n in sizes)) for name, sizes in (("a", (8, 4, 8)), ("b", (2, 2)))}
    units, read = cut(nets, "leaf").units, []
    arena = RingOfEach(ring_sizes(units, 2), CPU)

    def note(unit: Unit, memory: Tensor) -> None:
        read.append(unit.network)
        unit.read_into(memory)

    conveyor, held = Conveyor(units, note, arena, prefetcher), []
    for _ in range(2):
        for unit in units:
            load = conveyor.arrive(unit)
            assert all(torch.equal(weight.view(load.memory, begin), weight.master) for weight, begin in unit.places)
            held.append(arena.nbytes)
            assert read[-1] == unit.network
    largest = [max(unit.nbytes for unit in units if unit.network == name) for name in "ab"]
    assert held == [2 * largest[0]] * 3 + [2 * largest[1]] * 2 + [2 * largest[0]] * 3 + [2 * largest[1]] * 2
    conveyor.close()


def test_another_order_is_learnt() -> None:
    # Three slots: with two, a largest unit in their middle leaves no room for another, which then comes when needed.
    line, order = Line(Eager(), room=3), [6, 0, 5, 1, 4, 2, 3]
    line.run(order)
    line.run(order)
    line.read.clear()
    line.run(order)
    names = [line.units[i].name for i in order]
    first = line.read.index(names[0]) if names[0] in line.read else 0
    ahead = [line.read[(first + k) % len(line.read)] for k in range(len(line.read))]
    assert sorted(line.read) == sorted(names)  # each once: every guess was right
    assert ahead == names


def test_alternating_units_are_not_read_again(prefetcher: Any) -> None:
    line = Line(prefetcher, sizes=(16, 16, 16, 16), room=3)
    line.run([0, 1, 0, 1])  # learnt
    line.read.clear()
    line.run([0, 1] * 10)
    assert line.read == []


def test_at_random(prefetcher: Any) -> None:
    line = Line(prefetcher)
    order = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    line.run(order)


def test_one_component_at_a_time() -> None:
    line = Line(Eager(), arena=OneAtATime(CPU), ahead=False)
    line.run([0, 0, 1, 1, 2, 0])
    assert line.read == ["net.0", "net.1", "net.2", "net.0"]


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("when", [0, 1, 3, 6])
@pytest.mark.parametrize("kind", [Late, Eager, ThreadPrefetcher])
def test_a_failed_read_is_raised_and_tried_again(kind: type, when: int, failure: BaseException) -> None:
    line = Line(kind())
    line.run(range(when))
    line.failure = failure
    with pytest.raises(type(failure)):
        line.run([*range(7)] * 3)
    line.failure = None
    line.run()
    line.run()
    line.conveyor.close()


@pytest.mark.parametrize("method", ["wait", "start", "mark", "abandon"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_ctrl_c_anywhere(method: str, late: bool, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(Late())
    line.run()
    inner, seen = getattr(line.conveyor._prefetcher, method), 0

    def interrupted(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == nth and not late:
            raise KeyboardInterrupt
        result = inner(*args)
        if seen == nth:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(line.conveyor._prefetcher, method, interrupted)
        try:
            for order in ([0, 3, 1, 6, 2, 5, 4], None, None):
                line.run(order)
        except KeyboardInterrupt:
            pass
    line.run()
    line.run()
    line.conveyor.clear()


def test_memory_is_reused_only_after_what_ran_in_it() -> None:
    prefetcher = Eager()
    line = Line(prefetcher, sizes=(16,) * 6, room=2)
    line.run()
    line.run()
    reused = prefetcher.after[2:]
    assert all(after for after in reused)  # each fill waits for the unit that left its place
    assert all(mark <= prefetcher.marks for after in reused for mark in after)


def test_what_is_on_its_way_is_abandoned_before_its_memory_is_used() -> None:
    prefetcher = Late()
    line = Line(prefetcher, sizes=(16,) * 6, room=2)
    line.conveyor.arrive(line.units[0])  # and 1 is on its way
    line.run([4, 2])
    assert prefetcher.abandoned >= 1
    line.run()


def test_threads_see_whole_units() -> None:
    """The pipelines make calls wait for each other; `arrive` itself must not break when they do not."""
    line = Line(ThreadPrefetcher(), room=3)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(seed)).tolist():
                line.conveyor.arrive(line.units[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    line.run()
