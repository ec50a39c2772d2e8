"""What people combine: perturbed-attention guidance, IP-Adapters, ControlNets and LoRAs at once, on text, pictures and
masks, against diffusers' pipelines, by the same calls of classes of the same names, with the same random weights.

Tolerance: final latents within 1e-4 of their largest entry, as for whole pipelines (`test_pipelines`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity import ip_adapter_files, lora_files
from tests.parity.test_controlnet import control_of
from tests.parity.test_ip_adapter import picture
from tests.parity.test_pipelines import difference

import leandiffusion
from leandiffusion import ConfigError, ControlNetModel
from leandiffusion.pipelines import classes, open_pipeline

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")

LATENTS, VISIBLE = 1e-4, 1e-3
STEM = {"sd1": "StableDiffusion", "sdxl": "StableDiffusionXL"}
Pair = tuple[Any, Any]


def random(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(seed))


ON_PICTURE: dict[str, dict[str, Any]] = {
    "": {},
    "Img2Img": {"image": random(3), "strength": 0.7},
    "Inpaint": {"image": random(3), "mask_image": (random(4, 1) > 0.5).float(), "strength": 0.9},
}


@pytest.fixture
def pair(tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> Callable[..., Pair]:
    """By family, task, and parts ('pag', 'control', 'ip', 'lora'): diffusers' pipeline and ours, with the same on."""

    def make(family: str, task: str, *parts: str) -> Pair:
        plain, folder = tiny(family)
        kinds = f"{'ControlNet' * ('control' in parts)}{'PAG' * ('pag' in parts)}"
        name = f"{STEM[family]}{kinds}{task}Pipeline"
        given = {key: part for key, part in plain.components.items() if part is not None}
        given["unet"] = type(plain.unet).from_pretrained(folder / "unet")  # what is put on it stays there
        settings: dict[str, Any] = {"pag_applied_layers": ["mid", "up"]} if "pag" in parts else {}
        own: dict[str, Any] = dict(settings)
        if "control" in parts:
            given["controlnet"] = control_of(plain.unet, tmp_path / "control", 1)
            own["controlnet"] = ControlNetModel.from_pretrained(tmp_path / "control")
        if family != "sdxl":
            given |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        both = (
            getattr(diffusers, name)(**given, **settings),
            getattr(leandiffusion, name).from_pretrained(folder, **own),
        )
        unet = both[1].unet
        if "ip" in parts:
            ip_adapter_files.save_adapter(tmp_path, unet, "plain", gain=2.0)
        if "lora" in parts:
            save_file(lora_files.dotted("unet", unet, seed=5), tmp_path / "lora.safetensors")
        for pipe in both:
            pipe.set_progress_bar_config(disable=True)
            if "ip" in parts:
                pipe.load_ip_adapter(str(tmp_path), subfolder="models", weight_name="plain.safetensors")
                pipe.set_ip_adapter_scale(0.8)
            if "lora" in parts:
                pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", adapter_name="any")
        return both

    return make


def arguments(task: str, *parts: str, size: bool = False, **more: Any) -> dict[str, Any]:
    """Of a call. `size` for those that do not take theirs from the picture."""
    given: dict[str, Any] = {"prompt": "a red cat", "num_inference_steps": 3, "output_type": "latent"}
    given |= ON_PICTURE[task] | ({"height": 64, "width": 64} if size or task == "Inpaint" else {})
    if "ip" in parts:
        given["ip_adapter_image"] = picture(1)
    if "control" in parts:
        given["image" if not task else "control_image"] = random(6)
        given["controlnet_conditioning_scale"] = 0.3  # with random weights a whole one leaves little to the others
    if "pag" in parts:
        given["pag_scale"] = 2.5
    return given | more


def draw(pipe: Any, **given: Any) -> torch.Tensor:
    return pipe(generator=torch.Generator().manual_seed(0), **given).images


def check(both: Pair, **given: Any) -> torch.Tensor:
    expected, got = (draw(pipe, **given) for pipe in both)
    assert difference(expected, got) < LATENTS
    return got


ALL = ("pag", "control", "ip", "lora")
TWO = [("pag", "ip"), ("pag", "lora"), ("ip", "lora")]
CASES = [
    *(("sd1", task, two) for task in ("", "Img2Img", "Inpaint") for two in TWO),
    *(("sd1", task, ("control", other)) for task in ("", "Inpaint") for other in ("pag", "ip", "lora")),
    *(("sd1", "Img2Img", ("control", other)) for other in ("ip", "lora")),
    ("sd1", "", ALL), ("sd1", "Inpaint", ALL), ("sd1", "Img2Img", ("pag", "ip", "lora")),
    ("sdxl", "", ALL), ("sdxl", "Img2Img", ALL), ("sdxl", "Inpaint", ("pag", "ip", "lora")),
    ("sdxl", "Inpaint", ("control", "ip", "lora")),
]  # fmt: skip
"""Those that diffusers has a pipeline for."""


@pytest.mark.parametrize(
    ("family", "task", "parts"), CASES, ids=lambda each: "+".join(each) if isinstance(each, tuple) else each
)
def test_parity(pair: Callable[..., Pair], family: str, task: str, parts: tuple[str, ...]) -> None:
    """And each part counts."""
    both = pair(family, task, *parts)
    given = arguments(task, *parts, size=not task and "control" not in parts)
    got = check(both, **given)
    if "pag" in parts:
        assert difference(got, draw(both[1], **given | {"pag_scale": 0.0})) > VISIBLE
        check(both, **given | {"guidance_scale": 1.0})
    if "control" in parts:
        assert difference(got, draw(both[1], **given | {"controlnet_conditioning_scale": 0.0})) > VISIBLE
    if "lora" in parts:
        assert difference(got, draw(both[1], **given, cross_attention_kwargs={"scale": 0.0})) > VISIBLE
    if "ip" in parts:
        both[1].set_ip_adapter_scale(0.0)
        assert difference(got, draw(both[1], **given)) > VISIBLE


def test_several_pictures_and_parts_of_the_steps(pair: Callable[..., Pair]) -> None:
    both = pair("sd1", "", *ALL)
    more = {"prompt": ["a red cat", "the cat"], "num_images_per_prompt": 2, "pag_adaptive_scale": 0.003}
    check(both, **arguments("", *ALL, **more, control_guidance_start=0.3, control_guidance_end=0.9))


def test_guessing_under_perturbed_attention(pair: Callable[..., Pair]) -> None:
    """diffusers' pipeline fails there: its tensors have other numbers of rows."""
    ours = pair("sd1", "", "pag", "control")[1]
    guessing = arguments("", "pag", "control", guess_mode=True)
    plain = leandiffusion.StableDiffusionControlNetPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    without = {name: value for name, value in guessing.items() if name != "pag_scale"}
    assert torch.equal(draw(ours, **guessing | {"pag_scale": 0.0}), draw(plain, **without))
    assert difference(draw(ours, **guessing), draw(plain, **without)) > VISIBLE


# -- diffusers' names for pipelines with perturbed attention -----------------------------------------------------------

NAMES = sorted(name for name in classes() if "PAG" in name)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_arguments(name: str) -> None:
    """What diffusers' have more than those without perturbed attention is here too, and their arguments."""
    theirs, ours = getattr(diffusers, name, None), getattr(leandiffusion, name)
    if theirs is None:
        assert name in ("StableDiffusionControlNetPAGImg2ImgPipeline", "StableDiffusionXLControlNetPAGInpaintPipeline")
        return
    more = {*dir(theirs)} - {*dir(getattr(diffusers, name.replace("PAG", "")))}
    assert {each for each in more if not each.startswith("_")} <= {*dir(ours)}
    for method in ("__init__", "__call__"):
        wanted, known = (set(inspect.signature(getattr(cls, method)).parameters) for cls in (theirs, ours))
        assert wanted - known <= {"guidance_rescale"}


def test_where_a_call_says_nothing(pair: Callable[..., Pair]) -> None:
    both = pair("sd1", "", "pag")
    given = arguments("", size=True)
    got = check(both, **given)  # 3.0
    assert both[1].pag_scale == both[0].pag_scale == 3.0
    assert torch.equal(got, draw(both[1], **given, pag_scale=3.0))
    both[1].enable_perturbed_attention(1.0, "down")
    assert both[1].pag_applied_layers == ["down"]
    both[0].set_pag_applied_layers("down")
    assert difference(draw(both[0], **given, pag_scale=1.0), draw(both[1], **given)) < LATENTS
    check(both, **given | {"pag_scale": 2.0, "pag_adaptive_scale": 0.004})
    both[1].disable_perturbed_attention()
    assert not both[1].do_perturbed_attention_guidance
    assert torch.equal(draw(both[1], **given), draw(both[1], **given, pag_scale=0.0))


def test_it_is_kept_between_tasks(pair: Callable[..., Pair], tiny: Callable[[str], tuple[Any, Path]]) -> None:
    folder, auto = tiny("sd1")[1], leandiffusion.AutoPipelineForText2Image
    ours = auto.from_pretrained(folder, enable_pag=True, pag_applied_layers=["down"])
    assert type(ours) is leandiffusion.StableDiffusionPAGPipeline
    redraw = leandiffusion.AutoPipelineForImage2Image.from_pipe(ours)
    assert type(redraw) is leandiffusion.StableDiffusionPAGImg2ImgPipeline
    assert redraw.unet is ours.unet
    assert redraw.pag_applied_layers == ["down"]
    other = leandiffusion.AutoPipelineForInpainting.from_pipe(redraw, pag_applied_layers=["mid"])
    assert other.pag_applied_layers == ["mid"]
    plain = auto.from_pipe(redraw, enable_pag=False)
    assert type(plain) is leandiffusion.StableDiffusionPipeline
    assert plain.perturbed_attention is None
    plain.enable_perturbed_attention(2.0, "up")
    again = auto.from_pipe(plain, enable_pag=True)
    assert (again.pag_scale, again.pag_applied_layers) == (2.0, ["up"])


def test_a_folder_that_diffusers_saved(pair: Callable[..., Pair], tmp_path: Path) -> None:
    theirs = pair("sd1", "Img2Img", "pag")[0]
    theirs.save_pretrained(tmp_path / "saved")
    opened = open_pipeline(tmp_path / "saved")
    assert type(opened) is leandiffusion.StableDiffusionPAGImg2ImgPipeline
    assert type(open_pipeline(tmp_path / "saved", task="text-to-image")) is leandiffusion.StableDiffusionPipeline


def test_what_is_wrong_is_said_before_anything_is_computed(pair: Callable[..., Pair]) -> None:
    ours = pair("sd1", "", "pag")[1]
    with pytest.raises(ConfigError, match="pag_scale=-1: pass a number from 0"):
        ours("a", pag_scale=-1)
    ours.set_pag_applied_layers("nowhere")
    with pytest.raises(ConfigError, match=r"'nowhere': it is in"):
        ours("a")
    with pytest.raises(ConfigError, match="Give parts of layers' names"):
        ours.set_pag_applied_layers([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="processors of their own"):
        ours.set_pag_applied_layers("mid", (object(), object()))
    assert ours.pag_applied_layers == ["nowhere"]
