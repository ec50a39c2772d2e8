"""Many requests to a server that really draws, some of whose clients leave: all others are answered, memory stays."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import httpx2
from tqdm.auto import tqdm

ASKED = {"prompt": "a red circle", "size": "64x64", "guidance_scale": 1}
MOST_GROWTH = 0.02
WARM_UP = 200
"""Requests after which memory is first looked at: by then each number of them was drawn at once. Fewer tell nothing."""


@dataclass
class Report:
    """How requests ended, and bytes of memory after the first and after all."""

    ended: Counter[str] = field(default_factory=Counter)
    before: int = 0
    after: int = 0
    cancelled: int = 0
    """Jobs that the server says it cancelled."""
    left_over: int = 0
    """Jobs that wait or run when nobody asks any more."""

    @property
    def growth(self) -> float:
        return self.after / self.before - 1

    @property
    def wrong(self) -> list[str]:
        """What should not have been."""
        found = [how for how in self.ended if how not in ("answered", "left")]
        if self.growth > MOST_GROWTH:
            found.append(f"memory grew by {self.growth:.1%}")
        if self.cancelled != self.ended["left"]:
            found.append(f"{self.ended['left']} clients left, and {self.cancelled} jobs were cancelled")
        return found + ([f"{self.left_over} jobs are left"] if self.left_over else [])

    def __str__(self) -> str:
        return (
            f"{dict(self.ended)}; {self.cancelled} jobs cancelled; memory {self.before / 2**20:.0f} -> "
            f"{self.after / 2**20:.0f} MiB ({self.growth:+.1%}) {' '.join(self.wrong[:5])}".strip()
        )


def endure(url: str, count: int, clients: int = 8, leaving: float = 0.1, seed: int = 0) -> Report:
    """`count` requests, by so many clients at once, of which a share of `leaving` does not wait for the answer."""
    chance, report = random.Random(seed), Report()
    plan = [chance.random() < leaving for _ in range(count)]
    first, cancelled = min(count, WARM_UP), _cancelled(url)
    with ThreadPoolExecutor(clients) as pool:
        asking = tqdm(total=count, desc="drawn requests", mininterval=2)

        def ask(item: tuple[int, bool]) -> str:
            how = _ask(url, *item)
            asking.update()
            return how

        report.ended.update(pool.map(ask, enumerate(plan[:first])))
        report.before = _memory(url)
        report.ended.update(pool.map(ask, enumerate(plan[first:], first)))
        asking.close()
    _ask(url, count, leaves=False)  # what is answered after those who left, and in their stead
    report.after = _memory(url)
    report.cancelled = int(_cancelled(url) - cancelled)
    report.left_over = len(httpx2.get(f"{url}/v1/jobs", timeout=60).json()["data"])
    return report


def _memory(url: str) -> int:
    """Bytes that the server's process has, as it tells."""
    found = _metric(url, 'leandiffusion_memory_bytes{what="now"}')
    assert found is not None
    return int(found)


def _cancelled(url: str) -> float:
    return _metric(url, 'leandiffusion_jobs_total{model="demo",state="cancelled"}') or 0.0


def _metric(url: str, name: str) -> float | None:
    """A metric's value; None where there is none yet."""
    told = httpx2.get(f"{url}/metrics", timeout=60).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", told, re.MULTILINE)
    return None if found is None else float(found[1])


def _ask(url: str, number: int, leaves: bool) -> str:
    body: dict[str, Any] = {**ASKED, "seed": number, "num_inference_steps": 1, "stream": number % 7 == 0}
    if leaves:
        return _leave(url, {**body, "num_inference_steps": 500, "stream": number % 2 == 0})
    with httpx2.Client(base_url=url, timeout=300) as client:
        answer = client.post("/v1/images/generations", json=body)
    whole = "image_generation.completed" in answer.text if body["stream"] else f'"seed":{number}' in answer.text
    return "answered" if answer.status_code == 200 and whole else f"wrong: {answer.status_code} {answer.text[:200]}"


def _leave(url: str, body: Mapping[str, Any]) -> str:
    """Ask, and go as soon as the request is a job."""
    job = uuid.uuid4().hex
    headers = {"Content-Type": "application/json", "X-Client-Request-Id": job}
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=300)) as connection:
        connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
        while (found := httpx2.get(f"{url}/v1/jobs/{job}", timeout=300)).status_code == 404:
            time.sleep(0.02)
    return "left" if found.status_code == 200 else f"wrong: {found.status_code} {found.text[:200]}"
