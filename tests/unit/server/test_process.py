"""The command in a process: how it starts, what it says, and that SIGTERM leaves nobody without an answer."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.soak import served
from tests.unit.server.conftest import LONG, QUICK
from typer.testing import CliRunner

from leandiffusion.cli.app import app

ROOT = Path(__file__).parents[3]
ALONE = {"n": 2}
"""No request of several pictures is drawn with others, so that none waits for the plan of that."""


COMMAND = (sys.executable, "-m", "tests.unit.server.program", "serve")


class Process(served.Process):
    def __init__(self, *arguments: str) -> None:
        super().__init__(arguments, COMMAND)

    def line(self, event: str) -> dict[str, Any]:
        return next(line for line in self.lines if line["event"] == event)

    def ask(self, **fields: Any) -> Asked:
        return Asked(self.url, fields)


class Asked:
    """A request that is under way, in a thread."""

    def __init__(self, url: str, fields: dict[str, Any]) -> None:
        self.answer: httpx2.Response | None = None
        self.url, self.fields = url, fields
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=120) as client:
            self.answer = client.post("/v1/images/generations", json=self.fields)

    def result(self) -> httpx2.Response:
        self._thread.join(120)
        assert self.answer is not None, "no answer came"
        return self.answer


def until_jobs(url: str, count: int) -> None:
    with httpx2.Client(base_url=url, timeout=20) as client:
        while len(client.get("/v1/jobs").json()["data"]) < count:
            pass


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        each.process.kill()
        each.end()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to drain on")
def test_sigterm_lets_what_was_accepted_be_answered(processes: list[Process]):
    process = Process("--drain", "60")
    processes.append(process)
    asked = [process.ask(**{**QUICK, **ALONE, "num_inference_steps": 30, "seed": seed}) for seed in range(3)]
    until_jobs(process.url, 3)
    process.process.send_signal(signal.SIGTERM)
    for each in asked:
        assert each.result().status_code == 200
    assert process.end() == 0
    assert process.line("draining")["jobs"] >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to drain on")
def test_what_is_not_done_in_time_is_told_so(processes: list[Process]):
    process = Process("--drain", "0.2")
    processes.append(process)
    asked = [process.ask(**LONG, **ALONE, stream=stream) for stream in (False, False, True)]
    until_jobs(process.url, 3)
    process.process.send_signal(signal.SIGTERM)
    for each in asked[:2]:
        answer = each.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"] == "30"
    streamed = asked[2].result()
    assert '"code": "shutting_down"' in streamed.text
    assert "event: error" in streamed.text
    assert process.end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_a_second_ctrl_c_waits_for_no_picture_and_still_tells_its_client(processes: list[Process]):
    process = Process("--drain", "600")
    processes.append(process)
    asked = [process.ask(**LONG, **ALONE) for _ in range(2)]
    until_jobs(process.url, 2)
    for _ in range(2):
        process.process.send_signal(signal.SIGINT)
        while not any(line["event"] == "draining" for line in [*process.lines]):
            pass
    assert [each.result().json()["error"]["code"] for each in asked] == ["shutting_down"] * 2
    process.process.wait(60)
    assert process.process.returncode == 0


def said(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], prog_name="leandiffusion")


def test_what_cannot_be_followed_is_told_before_anything_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LEANDIFFUSION_API_KEY", raising=False)
    for arguments, words in (
        (["--host", "0.0.0.0"], "give --api-key"),
        (["--model", "a/b=x"], "write NAME=PATH"),
        (["--model", "demo", "--model", "demo"], "two models are called 'demo'"),
        (["--max-body", "much"], "is not a size"),
    ):
        result = said(*arguments)
        assert result.exit_code == 1
        assert words in " ".join(result.stderr.split())


def test_a_port_that_is_taken_is_named():
    from leandiffusion.core.errors import ConfigError
    from leandiffusion.server.serve import _bound

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on .* choose another --port"),
            _bound("127.0.0.1", port),
        ):
            pass


def test_help_names_every_option_and_loads_no_server():
    code = "import sys; from leandiffusion.cli.app import app; app(['serve', '--help'], standalone_mode=False); "
    code += "assert not {'fastapi', 'uvicorn', 'torch', 'prometheus_client'} & {*sys.modules}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for option in ("--model", "--host", "--api-key", "--allow-host", "--memory", "--queue", "--timeout", "--drain"):
        assert option in told
