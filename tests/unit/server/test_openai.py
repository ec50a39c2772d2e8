"""OpenAI's images contract, driven by OpenAI's own client against a real server on the packaged model."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args, get_origin, get_type_hints

import httpx2
import openai
import pytest
import torch
from openai.types import image_create_variation_params, image_edit_params, image_generate_params
from PIL import Image
from tests.soak.quick import Running
from tests.unit.server.conftest import LONG, QUICK, client_of

import leandiffusion
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.pictures.record import JSON_KEY, PictureRecord
from leandiffusion.plan import make
from leandiffusion.run.size import CallSize
from leandiffusion.server.errors import ApiError
from leandiffusion.server.fields import Fields
from leandiffusion.server.openai_fields import Edit, Generation, Variation
from leandiffusion.server.uploads import Upload

EXTRAS = {"num_inference_steps": 2, "guidance_scale": 2.5}


@pytest.fixture
def client_of_openai(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture_of(item: Any) -> Image.Image:
    text = item["b64_json"] if isinstance(item, dict) else item.b64_json
    return Image.open(io.BytesIO(base64.b64decode(text)))


def planned(running: Running, cls: Any, side: int, guidance: bool = True) -> Any:
    """The library's pipeline, with the settings that the server draws with: others differ by rounding."""
    pipe = cls.from_pretrained("demo")
    pipe.apply(running.service.models.plan("demo", CallSize(side, side, guidance=guidance)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def alone(running: Running, seed: int, **more: Any) -> Image.Image:
    """What the library draws by itself."""
    pipe = planned(running, leandiffusion.StableDiffusionPipeline, 64, more.get("guidance_scale", 2.5) > 1)
    asked = {"prompt": "a red circle", "height": 64, "width": 64, **EXTRAS, **more}
    return pipe(**asked, generator=torch.Generator().manual_seed(seed)).images[0]


def test_a_picture_is_the_one_that_the_library_draws_with_that_seed(running: Running, client_of_openai: openai.OpenAI):
    answer = client_of_openai.images.generate(
        prompt="a red circle", n=2, size="64x64", extra_body={**EXTRAS, "seed": 5}
    )
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert answer.data is not None
    for seed, item in zip((5, 6), answer.data, strict=True):
        assert picture_of(item).tobytes() == alone(running, seed).tobytes()


def test_pngs_carry_the_record_with_the_models_name_and_no_path(client_of_openai: openai.OpenAI):
    answer = client_of_openai.images.generate(
        prompt="a red circle", model="other", size="64x64", extra_body={**EXTRAS, "seed": 5, "scheduler": "euler"}
    )
    assert answer.data is not None
    text = picture_of(answer.data[0]).info[JSON_KEY]
    recipe = PictureRecord.from_json(text).recipe
    assert (recipe.model, recipe.seed, recipe.steps, recipe.scheduler) == ("other", 5, 2, "euler")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_formats_and_their_quality(client_of_openai: openai.OpenAI, output_format: Any):
    sizes = []
    for compression in (10, 100):
        answer = client_of_openai.images.generate(
            prompt="a red circle", size="64x64", output_format=output_format, output_compression=compression,
            extra_body={**EXTRAS, "seed": 5},
        )  # fmt: skip
        assert answer.data is not None
        assert picture_of(answer.data[0]).format == output_format.upper()
        sizes.append(len(answer.data[0].b64_json or ""))
    assert sizes[0] < sizes[1]


def test_what_is_streamed_are_partial_pictures_and_then_the_one_that_is_drawn_anyway(
    running: Running, client_of_openai: openai.OpenAI
):
    stream = client_of_openai.images.generate(
        prompt="a red circle", size="64x64", stream=True, partial_images=2,
        extra_body={**EXTRAS, "num_inference_steps": 6, "seed": 5},
    )  # fmt: skip
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert picture_of(events[-1]).tobytes() == alone(running, 5, num_inference_steps=6).tobytes()
    assert len({event.b64_json for event in events}) == 3


@pytest.mark.filterwarnings("ignore:decoding did not fit in memory")
def test_partial_pictures_of_large_ones_are_decoded_from_fewer_latents_and_a_failure_of_theirs_costs_none(
    client_of_openai: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
):
    decode, sides = AutoencoderKL.decode, []

    def seen(vae: Any, z: Any, **options: Any) -> Any:
        if z.device.type != "meta":  # which is planning
            sides.append(tuple(z.shape[-2:]))
        return decode(vae, z, **options)

    def asked(**more: Any) -> Any:
        asked = {**EXTRAS, "guidance_scale": 1, "seed": 5}
        return client_of_openai.images.generate(prompt="a red circle", size="512x384", extra_body=asked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(AutoencoderKL, "decode", seen)
    partial_, whole = asked(stream=True, partial_images=1)
    assert sides == [(24, 32), (48, 64)]
    assert picture_of(partial_).size == picture_of(whole).size == (512, 384)
    alone = asked()
    assert picture_of(alone.data[0]).tobytes() == picture_of(whole).tobytes()

    def only_early_ones_fail(vae: Any, z: Any, **options: Any) -> Any:
        if z.shape[-1] < 64:
            raise MemoryError("no room")
        return decode(vae, z, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", only_early_ones_fail)
    (only,) = asked(stream=True, partial_images=1)
    assert picture_of(only).tobytes() == picture_of(whole).tobytes()


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def literals(hint: Any) -> Iterator[Any]:
    """The values that a type names."""
    for part in get_args(hint):
        if get_origin(hint) is Literal:
            yield part
        else:
            yield from literals(part)


@pytest.mark.parametrize(
    ("params", "fields", "more"),
    [
        (image_generate_params.ImageGenerateParamsStreaming, Generation, {}),
        (image_edit_params.ImageEditParamsStreaming, Edit, {"image": Upload(b"a")}),
        (image_create_variation_params.ImageCreateVariationParams, Variation, {"image": Upload(b"a")}),
    ],
)
def test_every_field_that_the_client_knows_is_served_or_refused_by_name(
    params: Any, fields: type[Fields], more: dict[str, Any]
):
    needed = {"prompt": "a", **more}
    for name, hint in get_type_hints(params).items():
        assert name in {*fields.names(), *fields.UNSERVED, *fields.IDLE}
        for value in literals(hint):
            refused = None
            try:
                fields.checked({**needed, name: value}, strict=not more)
            except ApiError as error:
                refused = error.param
            assert refused in (None, name)


def test_edits_draw_on_a_picture_and_keep_what_the_mask_leaves_out(running: Running, client_of_openai: openai.OpenAI):
    image = Image.new("RGB", (64, 64), "white")
    mask = Image.new("RGBA", image.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))  # what is transparent is drawn anew
    answer = client_of_openai.images.edit(
        image=("a.png", file_of(image)), mask=("m.png", file_of(mask)), size="64x64",
        prompt="a blue circle on a black background",
        extra_body={**EXTRAS, "num_inference_steps": 4, "seed": 9, "strength": 1},
    )  # fmt: skip
    assert answer.data is not None
    drawn = picture_of(answer.data[0]).convert("RGB")
    parts = [
        torch.tensor(list(each.crop(box).tobytes()), dtype=torch.float32)
        for box in ((0, 0, 24, 64), (40, 0, 64, 64))
        for each in (image, drawn)
    ]
    anew, kept = (float((parts[i] - parts[i + 1]).abs().mean()) for i in (0, 2))
    assert kept < 20 < 200 < anew  # what the VAE makes of the kept half differs a little


def test_edits_without_a_mask_and_variations_are_image_to_image(running: Running, client_of_openai: openai.OpenAI):
    image = alone(running, 5)
    options = {"extra_body": {**EXTRAS, "num_inference_steps": 4, "seed": 9, "strength": 0.5}}
    edited = client_of_openai.images.edit(image=file_of(image), prompt="", **options)  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match="deprecated"):  # OpenAI has no model left that varies
        varied = client_of_openai.images.create_variation(image=file_of(image), **options)  # type: ignore[arg-type]
    pipe = planned(running, leandiffusion.StableDiffusionImg2ImgPipeline, 128)
    own = {"num_inference_steps": 4, "guidance_scale": 2.5, "strength": 0.5}
    expected = pipe("", image.resize((128, 128), Image.Resampling.LANCZOS), **own, generator=torch.manual_seed(9))
    assert edited.data is not None
    assert varied.data is not None
    assert picture_of(edited.data[0]).tobytes() == expected.images[0].tobytes()
    assert edited.data[0].b64_json is not None
    assert picture_of(varied.data[0]).tobytes() == expected.images[0].tobytes()


def test_models_are_listed_and_found_by_name(client_of_openai: openai.OpenAI):
    assert [model.id for model in client_of_openai.models.list()] == ["demo", "other"]
    assert client_of_openai.models.retrieve("other").owned_by == "leandiffusion"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'demo'"):
        client_of_openai.models.retrieve("demos")


def test_what_the_model_warns_of_comes_with_the_answer(running: Running, client: httpx2.Client):
    from leandiffusion.server.jobs import Job, current
    from leandiffusion.server.logs import note_warning

    job = Job("a", "demo", lambda job: None)
    token = current.set(job)
    try:
        note_warning("the demo model has never seen 'dog'\x1b[2J", UserWarning)
        note_warning("of no interest", DeprecationWarning)
    finally:
        current.reset(token)
    assert job.notes == ["the demo model has never seen 'dog'\\x1b[2J"]


def test_32_clients_at_once_get_their_own_seeds_pictures(running: Running):
    """But for rounding: where the plan says that it pays, those that wait are drawn several at once."""
    seeds = range(100, 132)
    one = {**QUICK, "num_inference_steps": 1, "guidance_scale": 1}

    def ask(seed: int) -> bytes:
        with client_of(running) as client:
            answer = client.post("/v1/images/generations", json={**one, "seed": seed})
            assert answer.status_code == 200, answer.text
            return picture_of(answer.json()["data"][0]).tobytes()

    with ThreadPoolExecutor(32) as clients:
        pictures = dict(zip(seeds, clients.map(ask, seeds), strict=True))
    assert len(set(pictures.values())) == 32
    pipe = planned(running, leandiffusion.StableDiffusionPipeline, 64, guidance=False)
    for seed in seeds:
        asked = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 1}
        expected = pipe("a red circle", generator=torch.Generator().manual_seed(seed), **asked).images[0].tobytes()
        assert max(abs(a - b) for a, b in zip(pictures[seed], expected, strict=True)) <= 2


def test_pictures_drawn_at_once_are_those_drawn_alone_but_for_rounding(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running.service.models, "together", lambda name, call, memory: 4)
    answers: dict[int, httpx2.Response] = {}

    def ask(seed: int, **more: Any) -> None:
        with client_of(running) as client:
            answers[seed] = client.post("/v1/images/generations", json={**QUICK, **EXTRAS, "seed": seed, **more})

    asking = [threading.Thread(target=ask, args=(0,), kwargs={"num_inference_steps": 20, "n": 2})]
    asking[0].start()
    while not running.service.queue.jobs():
        assert asking[0].is_alive()
    for seed in range(1, 7):  # the first of them comes to an empty queue, and does not look whether it pays
        asking.append(threading.Thread(target=ask, args=(seed,)))
        asking[-1].start()
    for each in asking:
        each.join(120)
    notes = [answer.json().get("warnings", []) for answer in answers.values()]
    assert any("others at once: alone it would differ by rounding" in told for note in notes for told in note)
    for seed in range(1, 7):
        assert answers[seed].status_code == 200
        picture = torch.tensor(list(picture_of(answers[seed].json()["data"][0]).tobytes()), dtype=torch.float32)
        expected = torch.tensor(list(alone(running, seed).tobytes()), dtype=torch.float32)
        assert (picture - expected).abs().max() <= 2  # of 255


def test_a_client_that_leaves_has_its_job_cancelled(running: Running, client: httpx2.Client):
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/images/generations", json=LONG, timeout=1.0)
    after = client.post("/v1/images/generations", json=QUICK)  # is not behind a thousand steps
    assert after.status_code == 200
    assert running.service.queue.jobs() == []
    assert 'leandiffusion_jobs_total{model="demo",state="cancelled"}' in client.get("/metrics").text


def test_a_client_that_leaves_a_stream_has_its_job_cancelled(running: Running, client: httpx2.Client):
    with client.stream("POST", "/v1/images/generations", json={**LONG, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert next(answer.iter_lines()).startswith(": ")
    assert client.post("/v1/images/generations", json=QUICK).status_code == 200
    assert running.service.queue.jobs() == []


def test_a_job_is_found_by_its_requests_id_and_can_be_cancelled(running: Running, client: httpx2.Client):
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with client_of(running) as other:
            headers = {"X-Client-Request-Id": "mine"}
            answers.append(other.post("/v1/images/generations", json=LONG, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    while client.get("/v1/jobs/mine").status_code == 404:
        assert asking.is_alive()
    told = client.get("/v1/jobs/mine").json()
    assert (told["object"], told["model"], told["steps"]) == ("job", "demo", 1000)
    assert client.delete("/v1/jobs/mine").json()["state"] == "cancelled"
    asking.join(60)
    assert answers[0].json()["error"]["code"] == "cancelled"
    assert answers[0].headers["x-request-id"] == "mine"
    assert client.delete("/v1/jobs/mine").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_reader_blocks_nobody(running: Running, client: httpx2.Client, stream: bool):
    running.server.servers[0].sockets[0].setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
    )  # new connections have it
    asked = {**QUICK, "n": 10, "size": "128x128", "num_inference_steps": 1, "stream": stream}
    body = json.dumps(asked).encode()
    lines = "POST /v1/images/generations HTTP/1.1", "Host: localhost", "Content-Type: application/json"
    head = "\r\n".join((*lines, "Connection: close", f"Content-Length: {len(body)}", "", ""))
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", running.port))
        slow.sendall(head.encode() + body)
        while not stuck(running):
            time.sleep(0.01)
        for seed in (1, 2):
            assert client.post("/v1/images/generations", json={**QUICK, "seed": seed}).status_code == 200
        assert stuck(running), "it was slow all the while"
        slow.settimeout(60)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b'"b64_json"') == 10


def stuck(running: Running) -> bool:
    """Whether the server has something for a client that does not take it."""
    connections = list(running.server.server_state.connections)
    return any(each.transport.get_write_buffer_size() > 0 for each in connections)  # type: ignore[union-attr]


def test_others_are_answered_while_a_new_size_is_planned(
    running: Running, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
):
    client.post("/v1/images/generations", json=QUICK)
    let, made = threading.Event(), make.make_plan

    def slow(*args: Any) -> Any:
        assert let.wait(60)
        return made(*args)

    monkeypatch.setattr(make, "make_plan", slow)
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with client_of(running) as other:
            answers.append(other.post("/v1/images/generations", json={**QUICK, "size": "72x88"}))

    asking = threading.Thread(target=ask)
    asking.start()
    while not running.service.models._planning.locked():
        assert asking.is_alive()
    assert client.post("/v1/images/generations", json=QUICK).status_code == 200
    assert not answers
    let.set()
    asking.join(60)
    assert answers[0].status_code == 200


def test_health_and_metrics(client: httpx2.Client):
    assert client.get("/healthz").json() == {"status": "ok"}
    text = client.get("/metrics").text
    for name in ("queue_length", "models_open", "memory_bytes", "requests_total", "step_seconds_bucket"):
        assert f"leandiffusion_{name}" in text
