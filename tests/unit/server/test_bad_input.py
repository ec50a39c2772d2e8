"""Each wrong field has a typed error that names it, the rule and the fix; nothing is ignored in silence."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from PIL import Image
from tests.soak.quick import Running
from tests.unit.server.conftest import QUICK

URL = "/v1/images/generations"


def refused(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 500
    return error


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", 0, "n=0: input should be greater than or equal to 1. How many pictures"),
        ("n", 11, "less than or equal to 10"),
        ("n", "two", "valid integer"),
        ("n", True, "n=True"),
        ("n", 1.5, "valid integer"),
        ("prompt", 3, "valid string"),
        ("prompt", "x" * 32_001, "at most 32000 characters"),
        ("size", "64", "Pixels as WIDTHxHEIGHT"),
        ("size", "65x64", "not a multiple of 8"),
        ("size", "0x64", "Pixels as WIDTHxHEIGHT"),
        ("size", "4104x8", "more than 4096 pixels"),
        ("response_format", "url", "pictures come in the answer as b64_json"),
        ("response_format", "jpg", "'b64_json' or 'url'"),
        ("output_format", "gif", "'png', 'jpeg' or 'webp'"),
        ("output_compression", 50, "it belongs to output_format jpeg and webp"),
        ("output_compression", 101, "less than or equal to 100"),
        ("background", "transparent", "pictures are opaque"),
        ("quality", "ultra", "'auto', 'low'"),
        ("quality", "high", "num_inference_steps too: give one of them"),
        ("partial_images", 2, "ask for stream too"),
        ("partial_images", 4, "less than or equal to 3"),
        ("stream", "yes?", "valid boolean"),
        ("num_inference_steps", 0, "greater than or equal to 1"),
        ("num_inference_steps", 1001, "less than or equal to 1000"),
        ("guidance_scale", -1, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than or equal to 9223372036854775807"),
        ("scheduler", "eulr", "Did you mean 'euler'?"),
        ("prompt_syntax", "a1111", "'plain' or 'weighted'"),
        ("moderation", "low", "it may only be 'auto'"),
        ("style", "vivid", "say the style in the prompt"),
        ("svg", {}, "pictures are made of pixels"),
        ("input_fidelity", "high", "use strength"),
        ("seeds", 3, "there is no field 'seeds'. Did you mean 'seed'?"),
        ("__proto__", 3, "there is no field '__proto__'"),
    ],
)
def test_a_wrong_field(client: httpx2.Client, field: str, value: Any, words: str):
    error = refused(client.post(URL, json={**QUICK, field: value}))
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert words in error["message"]


def test_a_seed_beyond_the_last_one(client: httpx2.Client):
    error = refused(client.post(URL, json={**QUICK, "n": 2, "seed": 2**63 - 1}))
    assert (error["param"], error["message"][:22]) == ("seed", "seed: with n=2 the las")


def test_a_missing_prompt_and_a_model_that_is_not_served(client: httpx2.Client):
    error = refused(client.post(URL, json={"n": 1}))
    assert (error["param"], error["code"]) == ("prompt", "missing_parameter")
    error = refused(client.post(URL, json={**QUICK, "model": "../../etc/passwd"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "Served: demo, other." in error["message"]


def test_null_and_idle_values_are_as_good_as_left_out(client: httpx2.Client):
    nothing = dict.fromkeys(("model", "style", "user", "background", "seed", "svg", "partial_images"))
    assert client.post(URL, json={**QUICK, **nothing, "moderation": "auto"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "the body is []"),
        (b'"text"', "send a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "NaN"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "out of range"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", "nested deeper"),
        (b'{"prompt": ' + b"[" * 100_000, "lists, the limit is"),
        (rb'{"prompt": "\ud800"}', "surrogate"),
    ],
)
def test_a_body_that_is_no_json_object(client: httpx2.Client, body: bytes, words: str):
    error = refused(client.post(URL, content=body, headers={"Content-Type": "application/json"}))
    assert words in error["message"]


def test_a_body_of_another_type(client: httpx2.Client):
    assert "Content-Type: application/json" in refused(client.post(URL, data=QUICK), 415)["message"]
    assert "multipart/form-data" in refused(client.post("/v1/images/edits", json=QUICK), 415)["message"]


def test_a_size_that_does_not_fit_is_refused_before_it_is_drawn(
    client: httpx2.Client, running: Running, monkeypatch: pytest.MonkeyPatch
):
    from leandiffusion.plan.budget import Budget

    monkeypatch.setitem(vars(running.service.models), "_budget", Budget(300 << 20, reserves=True))
    error = refused(client.post(URL, json={**QUICK, "size": "1536x1536"}))
    assert (error["param"], error["code"]) == ("size", "does_not_fit")
    assert "the least that would do is" in error["message"]


def png(size: tuple[int, int] = (64, 64), kind: str = "PNG", color: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, color).save(file, kind)
    return file.getvalue()


def edit(client: httpx2.Client, files: dict[str, Any], **fields: Any) -> httpx2.Response:
    fields = {"prompt": "a red circle", "num_inference_steps": "2", **fields}
    return client.post("/v1/images/edits", data=fields, files=files)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (("a.png", b"", "image/png"), "empty"),
        (("a.png", b"GIF89a", "image/png"), "no PNG picture"),
        (("a.png", png(kind="JPEG"), "image/png"), "no PNG picture"),
        (("a.gif", png(kind="GIF"), "image/gif"), "declared as 'image/gif'"),
        (("a", png(kind="GIF"), "application/octet-stream"), "no PNG or JPEG or WEBP picture"),
        (("a.svg", b"<svg/>", "image/svg+xml"), "declared as"),
        (("a.png", png()[:60], "image/png"), "image"),
        (("a.png", png((5000, 4000)), "image/png"), "at most 16 million pixels"),
        (("a.png", png((20_000, 20_000)), "image/png"), "at most 16 million pixels"),
    ],
)
def test_an_upload_that_is_no_picture(client: httpx2.Client, file: Any, words: str):
    error = refused(edit(client, {"image": file}))
    assert error["param"] == "image"
    assert words in error["message"]


def test_uploads_that_do_not_belong_together(client: httpx2.Client):
    error = refused(edit(client, {"image": ("a.png", png()), "mask": ("m.png", png((32, 32)))}))
    assert (error["param"], "32x32" in error["message"]) == ("mask", True)
    error = refused(edit(client, {"mask": ("m.png", png())}))
    assert (error["param"], error["code"]) == ("image", "missing_parameter")
    several = [("image[]", ("a.png", png())), ("image[]", ("b.png", png()))]
    assert refused(edit(client, several))["code"] == "given_twice"  # type: ignore[arg-type]
    assert refused(edit(client, {"image": ("a.png", png())}, image="text"))["code"] == "given_twice"
    error = refused(edit(client, {"image": (None, "https://example.org/a.png")}))
    assert error["param"] == "image"  # a text, which no address is read from
    error = refused(edit(client, {"image": ("a.png", png())}, strength="0"))
    assert "above 0" in error["message"]
    error = refused(edit(client, {"image": ("a.png", png())}, strength="0.3", num_inference_steps="3"))
    assert error["param"] == "strength"
    assert (
        "0.3 of 3 steps leaves none: raise it to 0.34 or more, or ask for more num_inference_steps" in error["message"]
    )


def test_forms_that_are_none(client: httpx2.Client):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x\r\n",
        b"--y--",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n",
        b"\x00" * 99,
    ):
        refused(client.post("/v1/images/edits", content=body, headers=headers))
    error = refused(client.post("/v1/images/edits", content=b"--x--", headers={"Content-Type": "multipart/form-data"}))
    assert (error["code"], "boundary in the header" in error["message"]) == ("invalid_form", True)
    many = {f"field{i}": "1" for i in range(100)}
    refused(edit(client, {"image": ("a.png", png())}, **many))


def test_errors_have_one_shape_whoever_finds_them(client: httpx2.Client):
    assert refused(client.get("/v1/image"), 404)["code"] == "not_found"
    answer = client.get(URL)
    assert refused(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    assert refused(client.get("/v1/models/nope"), 404)["code"] == "model_not_found"
    assert refused(client.get("/v1/jobs/nope"), 404)["code"] == "job_not_found"
    assert client.get("/v1/nope/" + "x" * 5000).status_code == 404


def test_prompts_are_inert_in_the_log(caplog: pytest.LogCaptureFixture):
    import logging

    from leandiffusion.server.logs import JsonLines

    record = logging.makeLogRecord({"msg": 'a"}\n{"level": "fake"}\x1b[2J', "prompt": "\u2028<b>\u202e" + "x" * 9999})
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 3000
    assert json.loads(line)["event"].startswith('a"}')


def test_what_other_libraries_warn_of_is_a_line_of_json_too():
    code = "import logging; from leandiffusion.server.logs import to_stderr; to_stderr(); "
    code += "logging.getLogger('python_multipart').warning('Expected a boundary\\n%s', '\\x1b[2J')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    event = json.loads(told)["event"]
    assert event.startswith("Expected a boundary")
    assert "\x1b" not in event


def test_a_picture_in_base64():
    from leandiffusion.server.errors import ApiError
    from leandiffusion.server.uploads import from_base64

    text = base64.b64encode(b"abc").decode()
    assert from_base64("image", text).data == b"abc"
    assert from_base64("image", f"data:image/png;base64,{text}").content_type == "image/png"
    for wrong in ("http://example.org/a,b.png", "data:text/html,hello", "not base64!", "YWJj\n=", "é"):
        with pytest.raises(ApiError, match="image"):
            from_base64("image", wrong)
