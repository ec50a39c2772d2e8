"""Who may ask: key, host, origin, size of the body."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.soak.quick import Running
from tests.unit.server.conftest import QUICK, client_of

from leandiffusion.core.errors import ConfigError
from leandiffusion.server import guard
from leandiffusion.server.errors import ApiError
from leandiffusion.server.guard import Guard, Rules
from leandiffusion.server.serve import check_exposed, named_models
from leandiffusion.server.service import Service

KEY = "a-key-of-length"
RULES = Rules(api_key=KEY, hosts=("pictures.lan",), origins=("https://page.example",), most_bytes=10_000)


@pytest.fixture(scope="module")
def guarded(on_paper: None) -> Iterator[Running]:
    made = Running(Service({"demo": "demo"}), RULES)
    yield made
    made.end()


def status(guarded: Running, path: str = "/v1/models", **headers: str) -> int:
    headers = {name.replace("_", "-"): value for name, value in {"authorization": f"Bearer {KEY}", **headers}.items()}
    with client_of(guarded) as client:
        return client.get(path, headers=headers).status_code


def test_a_key_is_asked_for_everywhere_but_for_the_health(guarded: Running):
    with client_of(guarded) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nope"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert KEY not in answer.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models", auth=("anyone", KEY)).status_code == 200
        assert client.get("/v1/models", auth=("anyone", "wrong")).status_code == 401
    assert status(guarded) == 200
    for wrong in ("", KEY, f"Bearer {KEY}x", "Bearer", "Basic !", f"bearer  {KEY[:-1]}", "Basic 4pyT"):
        assert status(guarded, authorization=wrong) == 401


def test_hosts_that_another_dns_could_point_here_are_refused(guarded: Running):
    for host in ("localhost", "127.0.0.1:8188", "[::1]:80", "10.0.0.3", "pictures.lan:8000"):
        assert status(guarded, host=host) == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[", "localhost@evil.example:1"):
        assert status(guarded, host=host) == 403, host


def test_pages_of_other_sites_are_refused(guarded: Running):
    assert status(guarded, host="localhost:8188", origin="http://localhost:8188") == 200
    assert status(guarded, origin="https://page.example") == 200
    for origin in ("null", "https://evil.example", "http://localhost:1", "file://", "https://page.example.evil"):
        assert status(guarded, host="localhost:8188", origin=origin) == 403, origin


def test_a_body_that_is_too_long_is_not_read(guarded: Running):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 1000

    with client_of(guarded, headers=headers) as client:
        for content in (b" " * 10_001, parts()):
            answer = client.post("/v1/images/generations", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        answer = client.post("/v1/images/edits", files={"image": b" " * 20_000}, headers={"content-type": ""})
        assert answer.status_code == 413
        assert client.post("/v1/images/generations", json={**QUICK, "n": 0}).status_code == 400


def test_a_body_that_stops_coming_is_not_waited_for_and_one_that_came_is(
    guarded: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    lines = [
        "POST /v1/images/generations HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}",
        "Content-Type: application/json", "Content-Length: 100", "", '{"prompt": "a',
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", guarded.port)) as client:
        client.sendall("\r\n".join(lines).encode())
        client.settimeout(60)
        told = b"".join(iter(lambda: client.recv(65_536), b""))
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_incomplete"' in told
    long = {**QUICK, "num_inference_steps": 60}
    with client_of(guarded, headers={"authorization": f"Bearer {KEY}"}) as whole:
        assert whole.post("/v1/images/generations", json=long).status_code == 200


def test_a_packed_body_is_refused_unread(guarded: Running):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "content-encoding": "gzip"}
    with client_of(guarded, headers=headers) as client:
        answer = client.post("/v1/images/generations", content=gzip.compress(b" " * 10**6))
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_encoding")


def test_all_bodies_at_once_are_bounded_and_their_room_is_free_again():
    taken, refused = asyncio.run(flood(5))
    assert (taken, refused) == (4, 1)  # of 10,000 bytes each


async def flood(count: int) -> tuple[int, int]:
    """So many whole bodies while none is answered; how many were taken, and refused. Afterwards there is room."""
    answered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answered.wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b" " * 10_000, "more_body": False}

    before = Guard(app, RULES)
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    asked = [asyncio.create_task(before(scope, receive, None)) for _ in range(count)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    answered.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    errors = [each for each in ended if each is not None]
    assert all(isinstance(each, ApiError) and each.code == "too_much_at_once" for each in errors)
    await before(scope, receive, None)  # type: ignore[arg-type]
    return count - len(errors), len(errors)


def test_a_client_that_sends_too_much_at_once_is_told_so(on_paper: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "TOGETHER", 0.5)
    made = Running(Service({"demo": "demo"}), Rules(most_bytes=10_000))
    try:
        with client_of(made) as client:
            for _ in range(2):
                answer = client.post("/v1/images/generations", json={**QUICK, "prompt": "x" * 6000})
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_much_at_once")
                assert answer.headers["retry-after"] == "5"
            assert client.post("/v1/images/generations", json={**QUICK, "n": 0}).status_code == 400
    finally:
        made.end()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "pictures.lan", "localhost.evil.example"])
def test_others_may_only_come_with_a_key(host: str):
    with pytest.raises(ConfigError, match="give --api-key"):
        check_exposed(host, None)
    check_exposed(host, KEY)


def test_a_key_has_to_be_one():
    for key in ("", "short", "with\nnewline", "schlüssel-lang"):
        with pytest.raises(ConfigError, match="8 or more printable"):
            check_exposed("127.0.0.1", key)
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        check_exposed(host, None)


def test_models_have_names():
    found = named_models(["demo", "a=./x/y", "./folder/sd15/", "b/c.safetensors", "org/model"])
    assert found == {
        "demo": "demo", "a": "./x/y", "sd15": "./folder/sd15/", "c": "b/c.safetensors", "model": "org/model",
    }  # fmt: skip
    for wrong in (["a=x", "a=y"], ["a/b=x"], ["=x"], ["a="], ["a b=x"]):
        with pytest.raises(ConfigError):
            named_models(wrong)


def test_a_request_goes_through_with_the_key(guarded: Running):
    with httpx2.Client(base_url=guarded.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        assert client.post("/v1/images/generations", json={**QUICK, "num_inference_steps": 1}).status_code == 200
