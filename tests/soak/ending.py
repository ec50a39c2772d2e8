"""SIGTERM in the midst of many clients' requests: each that was accepted is answered, or told that it will not be."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2
from tests.soak.served import SERVE, Process

ASKED = {"prompt": "a red circle", "size": "64x64", "guidance_scale": 1, "num_inference_steps": 4, "n": 2}


@dataclass
class Report:
    """How requests ended for their clients, and what was wrong."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{dict(self.ended)}, {len(self.wrong)} wrong {' '.join(self.wrong[:5])}".strip()


class _Client:
    """Asks for one picture after the other, until nobody listens any more."""

    def __init__(self, url: str, stream: bool) -> None:
        self.url, self.body = url, {**ASKED, "stream": stream}
        self.ended: dict[str, str] = {}
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        while True:
            number = uuid.uuid4().hex
            headers = {"X-Client-Request-Id": number, "Connection": "close"}
            try:
                answer = httpx2.post(f"{self.url}/v1/images/generations", json=self.body, headers=headers, timeout=60)
            except httpx2.ConnectError:
                return
            except httpx2.TransportError as error:
                self.ended[number] = f"lost: {type(error).__name__}"
                return
            self.ended[number] = _kind(answer)
            if self.ended[number] == "told":
                return


def _kind(answer: httpx2.Response) -> str:
    if '"shutting_down"' in answer.text and answer.status_code in (200, 503):  # 200: in a stream that had begun
        return "told"
    whole = answer.text.count('"b64_json"') == ASKED["n"]
    return "answered" if answer.status_code == 200 and whole else f"wrong: {answer.status_code} {answer.text[:200]}"


def end_under_load(clients: int = 32, after: float = 2.0, drain: float = 1.0, command: Sequence[str] = SERVE) -> Report:
    """Start a server, and end it while so many clients ask, some seconds after its first answer; the log says which
    requests it had accepted."""
    process, report = Process(("--drain", str(drain), "--queue", str(clients)), command), Report()
    asking = [_Client(process.url, stream=number % 2 == 0) for number in range(clients)]
    until = time.monotonic() + 300
    while not any(each.ended for each in asking) and time.monotonic() < until:  # the first one has the model opened
        time.sleep(0.05)
    time.sleep(after)
    code = process.end()
    for each in asking:
        each.thread.join(60)
        report.wrong += ["a client waits still"] if each.thread.is_alive() else []
    accepted = {line["id"] for line in process.lines if line["event"] == "request"}
    for number, how in ((number, how) for each in asking for number, how in each.ended.items()):
        if how.startswith("lost") and number not in accepted:
            how = "not accepted"
        report.ended[how.partition(":")[0]] += 1
        report.wrong += [how] if how.startswith(("lost", "wrong")) else []
    report.wrong += [f"exit code {code}"] if code else []
    report.wrong += [] if report.ended["told"] and report.ended["answered"] else ["it was not under load"]
    return report
