"""Many requests to a server that really draws, some of whose clients leave: all others are answered, memory stays."""

from __future__ import annotations

import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2

ASKED = {"prompt": "a red circle", "size": "64x64", "guidance_scale": 1}
WARM_UP = 0.2
"""Share of the requests after which memory is first looked at."""


@dataclass
class Report:
    """How requests ended, and bytes of memory after the first and after all."""

    ended: Counter[str] = field(default_factory=Counter)
    before: int = 0
    after: int = 0

    @property
    def growth(self) -> float:
        return self.after / self.before - 1

    def __str__(self) -> str:
        return (
            f"{dict(self.ended)}; memory {self.before / 2**20:.0f} -> {self.after / 2**20:.0f} MiB ({self.growth:+.1%})"
        )


def endure(url: str, count: int, clients: int = 8, leaving: float = 0.1, seed: int = 0) -> Report:
    """`count` requests, by so many clients at once, of which a share of `leaving` does not wait for the answer."""
    chance, report = random.Random(seed), Report()
    plan = [chance.random() < leaving for _ in range(count)]
    first = int(count * WARM_UP)
    with ThreadPoolExecutor(clients) as pool:
        report.ended.update(pool.map(lambda item: _ask(url, *item), enumerate(plan[:first])))
        report.before = _memory(url)
        report.ended.update(pool.map(lambda item: _ask(url, *item), enumerate(plan[first:], first)))
    report.after = _memory(url)
    return report


def _memory(url: str) -> int:
    """Bytes that the server's process has, as it tells."""
    told = httpx2.get(f"{url}/metrics", timeout=60).text
    found = re.search(r'^leandiffusion_memory_bytes{what="now"} (\S+)$', told, re.MULTILINE)
    assert found is not None, told
    return int(float(found[1]))


def _ask(url: str, number: int, leaves: bool) -> str:
    steps = 200 if leaves else 1
    body: dict[str, Any] = {**ASKED, "seed": number, "num_inference_steps": steps, "stream": number % 7 == 0}
    with httpx2.Client(base_url=url, timeout=0.3 if leaves else 300) as client:
        if leaves:
            with suppress(httpx2.TimeoutException):
                client.post("/v1/images/generations", json=body)
            return "left"
        answer = client.post("/v1/images/generations", json=body)
    whole = "image_generation.completed" in answer.text if body["stream"] else f'"seed":{number}' in answer.text
    return "answered" if answer.status_code == 200 and whole else f"wrong: {answer.status_code} {answer.text[:200]}"
