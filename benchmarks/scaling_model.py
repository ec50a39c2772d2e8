"""What a batch on many workers does with its time: a simulation, event by event.

A worker starts, reads the checkpoint, and draws until nothing is left. What workers share are queues: the store that
the checkpoint is read from, the store of the pictures (its operations, its bytes), the scheduler that hands out jobs,
the process that notes what became of them, and the cores where workers outnumber them. Each queue serves in the order
of coming; what takes long is cut into quanta, so that those who wait take turns.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

LOOK, CLAIM, KEEP = 1, 3, 9
"""Operations on the store of pictures. Looking whether somebody draws one lists the folder of those in hand; claiming
it lists that again, makes a file, and looks for the picture; keeping it opens, writes and syncs the file, links,
unlinks and syncs its name. A test counts them."""

LISTED = 100
"""Names that a store tells in one operation."""

READ_QUANTUM, DRAW_QUANTUM = 64e6, 0.05  # bytes, seconds

Process = Iterator[float]
"""Yields the time at which it goes on."""


@dataclass(frozen=True)
class Setting:
    """Counts, seconds, bytes, and rates per second."""

    workers: int
    rows: int
    draw: float
    jitter: float = 0.05
    """Of the seconds of a picture: a standard deviation, as a share of them."""
    start: float = 10.0
    checkpoint: float = 4e9
    read_rate: float = 1e9
    """Bytes of checkpoints that the shared store gives in all."""
    load_rate: float = 1e9
    """Bytes that one worker takes in."""
    operations: float = 5000.0
    """Of names and small files, that the store of pictures does in all."""
    picture: float = 0.5e6
    write_rate: float = 1e9
    hand_out: float | None = 0.002
    """Of the scheduler, for a job; None where workers find jobs by themselves, in one folder."""
    note: float = 0.0005
    """Of the process that keeps the manifest, for a picture."""
    read_list: float = 0.001
    """For a row, which is checked and named before anything is drawn: by one process, without a scheduler by each."""
    cores: int | None = None
    """That all workers share; None where each has its own machine."""


@dataclass(frozen=True)
class Outcome:
    """`seconds` to the last picture, `opening` to the last worker's first one, `steady` pictures per second while all
    draw, and the share of that time for which each queue was busy."""

    seconds: float
    opening: float
    steady: float
    busy: dict[str, float]

    def cost(self, setting: Setting) -> float:
        """Worker hours of 1,000 pictures, times whose price they cost: all are paid until the last picture is there."""
        return setting.workers * self.seconds / 3600 * 1000 / setting.rows


@dataclass
class Queue:
    """So many servers, who take what comes in order. `worked` are their seconds."""

    servers: int = 1
    worked: float = 0.0
    _free: list[float] = field(default_factory=list)

    def done(self, now: float, seconds: float) -> float:
        """When something is done that comes now and takes so long."""
        begin = now if len(self._free) < self.servers else max(now, heapq.heappop(self._free))
        heapq.heappush(self._free, begin + seconds)
        self.worked += seconds
        return begin + seconds


class Simulation:
    """One run of a setting."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting, self.now, self._chance = setting, 0.0, random.Random(seed)
        self.queues = {name: Queue() for name in ("reading", "operations", "writing", "scheduler", "manifest")}
        self._cores = None if setting.cores is None else Queue(setting.cores)
        self._waiting = list(range(setting.rows - 1, -1, -1))
        self._state = [0] * setting.rows  # 1: in hand, 2: there
        self._began: list[float] = []
        self._drawn: list[float] = []

    def run(self) -> Outcome:
        """From the command to the last picture."""
        order, heap = count(), list[tuple[float, int, Process]]()
        for _ in range(self.setting.workers):
            heapq.heappush(heap, (0.0, next(order), self._worker()))
        while heap:
            self.now, _, process = heapq.heappop(heap)
            if (then := next(process, None)) is not None:
                heapq.heappush(heap, (then, next(order), process))
        return self._outcome()

    def _worker(self) -> Process:
        setting = self.setting
        reading_list = setting.rows * setting.read_list
        if setting.hand_out is None:
            yield from self._compute(setting.start + reading_list)
        else:
            yield reading_list + setting.start
        yield from self._open()
        self._began.append(self.now)
        yield from self._find() if setting.hand_out is None else self._handed()

    def _open(self) -> Process:
        left = self.setting.checkpoint
        while left > 0:
            size, left = min(left, READ_QUANTUM), left - READ_QUANTUM
            there = self.queues["reading"].done(self.now, size / self.setting.read_rate)
            yield max(there, self.now + size / self.setting.load_rate)

    def _handed(self) -> Process:
        """Jobs as a scheduler hands them out."""
        assert self.setting.hand_out is not None
        while self._waiting:
            row = self._waiting.pop()
            yield self.queues["scheduler"].done(self.now, self.setting.hand_out)
            yield self._operate(LOOK + CLAIM, lists=2)
            yield from self._draw(row)

    def _find(self) -> Process:
        """Jobs as a worker finds them in a folder: each row is looked at, and left where another has it in hand."""
        left = []
        for row in range(self.setting.rows):
            if self._state[row] == 1:
                yield self._operate(LOOK, lists=1)
                left.append(row)
                continue
            mine = self._state[row] == 0
            self._state[row] = max(self._state[row], 1)
            yield self._operate(LOOK + CLAIM, lists=2)
            if mine:
                yield from self._draw(row)
        for row in left:
            while self._state[row] == 1:
                yield self.now + 0.2
            yield self._operate(LOOK + CLAIM, lists=2)

    def _draw(self, row: int) -> Process:
        seconds = max(0.1, self._chance.gauss(1, self.setting.jitter)) * self.setting.draw
        yield from self._compute(seconds)
        yield self._operate(KEEP)
        yield self.queues["writing"].done(self.now, self.setting.picture / self.setting.write_rate)
        self._state[row] = 2
        self._drawn.append(self.now)
        if self.setting.hand_out is not None:
            self.queues["manifest"].done(self.now, self.setting.note)  # nobody waits for it

    def _compute(self, seconds: float) -> Process:
        if self._cores is None:
            yield self.now + seconds
            return
        while seconds > 0:
            part, seconds = min(seconds, DRAW_QUANTUM), seconds - DRAW_QUANTUM
            yield self._cores.done(self.now, part)

    def _operate(self, operations: int, lists: int = 0) -> float:
        """Each of the lists has a name for each worker."""
        operations += lists * (min(self.setting.workers, self.setting.rows) // LISTED)
        return self.queues["operations"].done(self.now, operations / self.setting.operations)

    def _outcome(self) -> Outcome:
        """The last tenth of the pictures, when workers run out of work, does not count as steady."""
        end, opening = self._drawn[-1], max(self._began)
        last = self._drawn[int(0.9 * len(self._drawn))]
        steady = sum(opening < each <= last for each in self._drawn) / (last - opening) if last > opening else 0.0
        busy = {name: queue.worked / end for name, queue in self.queues.items()}
        return Outcome(end, opening, steady, busy)
