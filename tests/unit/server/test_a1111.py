"""AUTOMATIC1111's API as front ends call it, on the packaged model."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import httpx2
import pytest
from PIL import Image
from tests.soak.quick import Running
from tests.unit.server.conftest import client_of

URL = "/sdapi/v1"
QUICK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 3, "cfg_scale": 2.5}
AS_SENT = {
    **QUICK, "negative_prompt": "blue", "styles": [], "subseed": -1, "subseed_strength": 0, "seed_resize_from_h": -1,
    "seed_resize_from_w": -1, "sampler_name": "Euler a", "batch_size": 1, "n_iter": 1, "restore_faces": False,
    "tiling": False, "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
    "override_settings_restore_afterwards": True, "script_args": [], "sampler_index": "Euler", "enable_hr": False,
    "denoising_strength": 0, "firstphase_width": 0, "hr_scale": 2, "hr_upscaler": "Latent", "hr_resize_x": 0,
    "save_images": True, "send_images": True, "alwayson_scripts": {}, "clip_skip": 1, "scheduler": "Automatic",
}  # fmt: skip


def drawn(answer: httpx2.Response) -> tuple[list[Image.Image], dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"images", "parameters", "info"}
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
    return images, json.loads(body["info"])


def refused(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def as_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_what_front_ends_send_is_drawn(client: httpx2.Client):
    images, info = drawn(client.post(f"{URL}/txt2img", json=AS_SENT))
    assert (info["seed"], info["all_seeds"], info["negative_prompt"]) == (3, [3], "blue")
    assert images[0].size == (64, 64)
    assert "Sampler: Euler a" in info["infotexts"][0]
    assert images[0].info["parameters"] == info["infotexts"][0]


def test_pictures_have_the_seeds_that_follow_and_are_those_of_the_other_contract(client: httpx2.Client):
    images, info = drawn(client.post(f"{URL}/txt2img", json={**QUICK, "batch_size": 2, "n_iter": 2}))
    assert info["all_seeds"] == [3, 4, 5, 6]
    asked = {
        "prompt": "a red circle", "num_inference_steps": 2, "size": "64x64", "seed": 6, "guidance_scale": 2.5,
        "prompt_syntax": "weighted",
    }  # fmt: skip
    other = client.post("/v1/images/generations", json=asked).json()["data"][0]["b64_json"]
    assert Image.open(io.BytesIO(base64.b64decode(other))).tobytes() == images[3].tobytes()


def test_pictures_are_drawn_on(client: httpx2.Client):
    white, mask = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    asked = {**QUICK, "prompt": "a circle on a black background", "init_images": [as_base64(white)], "steps": 4}
    whole, _ = drawn(client.post(f"{URL}/img2img", json={**asked, "denoising_strength": 1, "mask_blur": 4}))
    asked["denoising_strength"] = 1
    masked = {**asked, "mask": "data:image/png;base64," + as_base64(mask), "inpainting_fill": 1}
    half, info = drawn(client.post(f"{URL}/img2img", json={**masked, "mask_blur": 4}))
    assert info["warnings"] == ["mask_blur was not used: edges of masks are sharp here."]
    right = [max(image.convert("L").crop((44, 0, 64, 64)).tobytes()) for image in (whole[0], half[0])]
    left = [max(image.convert("L").crop((0, 0, 20, 64)).tobytes()) for image in (whole[0], half[0])]
    assert right[0] < 150 < 240 < right[1]
    assert max(left) < 150
    around, _ = drawn(
        client.post(f"{URL}/img2img", json={**masked, "inpaint_full_res": True, "inpaint_full_res_padding": 8})
    )
    assert around[0].size == (64, 64)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sampler_name", "Eulr a", "Did you mean 'Euler a'?"),
        ("scheduler", "exponential", "'Automatic' and 'Karras'"),
        ("enable_hr", True, "it may only be"),
        ("restore_faces", True, "it may only be"),
        ("alwayson_scripts", {"controlnet": {}}, "it may only be"),
        ("subseed_strength", 0.5, "it may only be"),
        ("seed", -2, "greater than or equal to -1"),
        ("steps", 0, "greater than or equal to 1"),
        ("width", 60, "not a multiple of 8"),
        ("batch_size", 17, "less than or equal to 16"),
        ("prompt", "a <lora:night:0.8>", "is not read here"),
        ("negative", "a", "Did you mean 'negative_prompt'?"),
    ],
)
def test_a_wrong_field(client: httpx2.Client, field: str, value: Any, words: str):
    error = refused(client.post(f"{URL}/txt2img", json={**QUICK, field: value}))
    assert error["param"] == field
    assert words in error["message"]


@pytest.mark.parametrize(
    ("sampler", "eta", "noted"),
    [("Euler a", 1.0, False), ("Euler a", 0, True), ("DDIM", 1.0, True), ("DDIM", 0, False), ("Euler", 1.0, False)],
)
def test_eta_is_the_samplers_own_and_the_answer_says_so(client: httpx2.Client, sampler: str, eta: float, noted: bool):
    _, info = drawn(client.post(f"{URL}/txt2img", json={**QUICK, "sampler_name": sampler, "eta": eta}))
    assert [note.startswith(f"eta={eta:g} was not used") for note in info["warnings"]] == [True] * noted


def test_wrong_settings_and_pictures(client: httpx2.Client):
    error = refused(client.post(f"{URL}/txt2img", json={**QUICK, "override_settings": {"sd_vae": "other.pt"}}))
    assert error["param"] == "sd_vae"
    answer = client.post(f"{URL}/txt2img", json={**QUICK, "override_settings": {"sd_model_checkpoint": "sdxl"}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    error = refused(client.post(f"{URL}/txt2img", json={**QUICK, "batch_size": 16, "n_iter": 2}))
    assert "32 pictures" in error["message"]
    for images, words in (([], "at least 1"), (["http://example.org/a,b"], "base64"), (["AAAA"], "no PNG or JPEG")):
        assert words in refused(client.post(f"{URL}/img2img", json={**QUICK, "init_images": images}))["message"]


def test_every_sampler_is_found_by_each_of_its_names(client: httpx2.Client):
    from leandiffusion.schedulers import PRESETS
    from leandiffusion.server.a1111_samplers import scheduler_of

    found = set()
    for each in client.get(f"{URL}/samplers").json():
        found |= {scheduler_of(name, None) for name in (each["name"], *each["aliases"])}
    assert found == {*PRESETS}
    assert scheduler_of("DPM++ 2M", "karras") == scheduler_of("DPM++ 2M Karras", "Automatic") == "dpm++-karras"
    assert scheduler_of(None, None) is None


def test_a_model_is_chosen_for_all_or_for_one_request(client: httpx2.Client):
    assert [each["model_name"] for each in client.get(f"{URL}/sd-models").json()] == ["demo", "other"]
    assert client.post(f"{URL}/options", json={"sd_model_checkpoint": "other"}).status_code == 200
    assert client.get(f"{URL}/options").json()["sd_model_checkpoint"] == "other"
    assert drawn(client.post(f"{URL}/txt2img", json=QUICK))[1]["sd_model_name"] == "other"
    asked = {**QUICK, "override_settings": {"sd_model_checkpoint": "demo", "samples_format": "jpg"}}
    images, info = drawn(client.post(f"{URL}/txt2img", json=asked))
    assert (info["sd_model_name"], images[0].format) == ("demo", "JPEG")
    client.post(f"{URL}/options", json={"sd_model_checkpoint": "demo"})


def test_a_pictures_texts_are_read(client: httpx2.Client):
    text = client.post(f"{URL}/txt2img", json=QUICK).json()["images"][0]
    told = client.post(f"{URL}/png-info", json={"image": text}).json()
    assert told["info"].startswith("a red circle\nSteps: 2, Sampler:")
    assert json.loads(told["items"]["leandiffusion"])["recipe"]["seed"] == 3
    plain = as_base64(Image.new("RGB", (8, 8)))
    assert client.post(f"{URL}/png-info", json={"image": plain}).json()["info"] == ""
    assert refused(client.post(f"{URL}/png-info", json={"image": "AAAA"}))["param"] == "image"


def test_a_drawing_shows_its_progress_and_is_interrupted(running: Running, client: httpx2.Client):
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with client_of(running) as other:
            answers.append(other.post(f"{URL}/txt2img", json={**QUICK, "steps": 1000}))

    assert client.get(f"{URL}/progress").json()["progress"] == 0
    assert client.post(f"{URL}/interrupt").status_code == 200  # there is nothing to end
    asking = threading.Thread(target=ask)
    asking.start()
    while (told := client.get(f"{URL}/progress?skip_current_image=true").json())["progress"] == 0:
        assert asking.is_alive()
    assert told["state"]["sampling_steps"] == 1000
    assert 0 < told["progress"] < 1
    assert told["eta_relative"] > 0
    client.post(f"{URL}/interrupt")
    asking.join(60)
    images, info = drawn(answers[0])
    assert (images, info["interrupted"]) == ([], True)


def test_what_front_ends_ask_for_when_they_begin(client: httpx2.Client):
    for name in ("sd-vae", "upscalers", "latent-upscale-modes", "loras", "sd-modules", "script-info"):
        assert client.get(f"{URL}/{name}").json() == []
    assert client.get(f"{URL}/embeddings").json() == {"loaded": {}, "skipped": {}}
    assert client.get(f"{URL}/scripts").json() == {"txt2img": [], "img2img": []}
    assert client.post(f"{URL}/refresh-checkpoints").json() is None
    assert client.get(f"{URL}/schedulers").json()[1]["label"] == "Karras"
