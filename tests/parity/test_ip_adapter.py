"""IP-Adapters against diffusers', and the image encoder against transformers', with the same random weights.

Tolerance: final latents within 1e-4 of their largest entry, as for whole pipelines (`test_pipelines`); the encoder's
output within 1e-5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.parity import ip_adapter_files as files
from tests.parity.test_pipelines import difference

from leandiffusion import AutoPipelineForImage2Image, AutoPipelineForInpainting
from leandiffusion.modules.vision import CLIPVisionModelWithProjection
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*fast.*")

LATENTS, VISIBLE = 1e-4, 1e-2
FAMILIES = ("sd1", "sd2", "sdxl")
Pair = tuple[Any, Any]


def picture(seed: int) -> Image.Image:
    """Smooth, so that resampling that rounds in another place changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((files.SIDE, files.SIDE), Image.Resampling.BICUBIC)


@pytest.fixture
def pair(tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> Callable[..., Pair]:
    """By family, kinds of adapters and task: diffusers' pipeline and ours, both with the adapters loaded."""

    def load(family: str, *kinds: str, task: str = "") -> Pair:
        plain, folder = tiny(family)
        ours = open_pipeline(folder)
        names = []
        for number, kind in enumerate(kinds):
            names.append(files.save_adapter(tmp_path, ours.unet, kind, seed=number, gain=2.0).name)
        where = {"subfolder": "models", "weight_name": names}
        parts = {name: part for name, part in plain.components.items() if part is not None}
        parts["unet"] = type(plain.unet).from_pretrained(folder / "unet")  # its processors change
        cls = getattr(diffusers, type(plain).__name__.replace("Pipeline", f"{task}Pipeline"))
        missing = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
        settings = {} if family == "sdxl" else {"requires_safety_checker": False}
        theirs = cls(**missing | parts, **settings)
        theirs.load_ip_adapter(str(tmp_path), **where)
        ours.load_ip_adapter(tmp_path, **where)
        for pipe in (theirs, ours):
            pipe.set_progress_bar_config(disable=True)
        return theirs, ours

    return load


def draw(pipe: Any, **arguments: Any) -> torch.Tensor:
    defaults = {"prompt": "a red cat", "num_inference_steps": 4, "output_type": "latent"}
    return pipe(generator=torch.Generator().manual_seed(0), **defaults | arguments).images


def check(pair: Pair, **arguments: Any) -> torch.Tensor:
    expected, got = (draw(pipe, **arguments) for pipe in pair)
    assert difference(expected, got) < LATENTS
    return got


@pytest.mark.parametrize("hidden", [False, True])
def test_the_image_encoder(tmp_path: Path, hidden: bool) -> None:
    files.save_encoder(tmp_path)
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    ours = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, files.SIDE, files.SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (network(pixels, output_hidden_states=hidden) for network in (theirs, ours))
    torch.testing.assert_close(got.image_embeds, expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    for one, other in zip(got.hidden_states or (), expected.hidden_states or (), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in theirs.state_dict().items())


@pytest.mark.parametrize("kind", files.KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parity(pair: Callable[..., Pair], family: str, kind: str) -> None:
    """Guided and not; the picture decides, and the scale does."""
    both = pair(family, kind)
    one = check(both, ip_adapter_image=picture(1))
    assert difference(one, check(both, ip_adapter_image=picture(2))) > VISIBLE
    check(both, ip_adapter_image=picture(1), guidance_scale=1.0)
    for pipe in both:
        pipe.set_ip_adapter_scale(0.3)
    assert difference(one, check(both, ip_adapter_image=picture(1))) > VISIBLE


def test_unloaded_it_is_as_before(pair: Callable[..., Pair], tiny: Callable[[str], tuple[Any, Path]]) -> None:
    ours = pair("sd1", "plain")[1]
    ours.unload_ip_adapter()
    assert ours.image_encoder is None
    plain = open_pipeline(tiny("sd1")[1])
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(draw(ours), draw(plain))


def test_several_adapters_pictures_and_prompts(pair: Callable[..., Pair]) -> None:
    both = pair("sd1", "plain", "plus")
    for pipe in both:
        pipe.set_ip_adapter_scale([0.7, 0.4])
    images = [[picture(1), picture(2)], picture(3)]
    check(both, ip_adapter_image=images)
    check(both, ip_adapter_image=images, prompt=["a red cat", "the cat"], num_images_per_prompt=2)


@pytest.mark.parametrize(
    "scale", [{"up": {"block_1": [0.0, 1.0]}}, {"down": 1.0, "mid": 0.5}, {"up": 0.5, "down": {"block_0": [0.7]}}]
)
def test_scales_by_block(pair: Callable[..., Pair], scale: dict[str, Any]) -> None:
    both = pair("sd1", "plain")
    for pipe in both:
        pipe.set_ip_adapter_scale(copy.deepcopy(scale))
    check(both, ip_adapter_image=picture(1))


def test_a_callback_may_change_the_scale(pair: Callable[..., Pair]) -> None:
    both = pair("sd1", "plain")

    def weaker(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(0.2 * i)
        return {}

    check(both, ip_adapter_image=picture(1), callback_on_step_end=weaker)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("kind", files.KINDS)
def test_embeddings_are_exchangeable(pair: Callable[..., Pair], kind: str, guided: bool) -> None:
    both = pair("sd1", kind)
    theirs, ours = (pipe.prepare_ip_adapter_image_embeds([picture(1)], None, "cpu", 1, guided) for pipe in both)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    scale = {"guidance_scale": 7.5 if guided else 1.0}
    got = check(both, ip_adapter_image_embeds=theirs, **scale)
    assert difference(got, draw(both[1], ip_adapter_image=picture(1), **scale)) < LATENTS


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_on_a_picture(pair: Callable[..., Pair], family: str, task: str) -> None:
    theirs, ours = pair(family, "plain", task=task)
    auto = AutoPipelineForImage2Image if task == "Img2Img" else AutoPipelineForInpainting
    on_picture = auto.from_pipe(ours)
    on_picture.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"image": image, "strength": 0.8, "ip_adapter_image": picture(1)}
    if task == "Inpaint":
        given |= {"mask_image": (image[:, :1] > 0.5).float(), "height": 64, "width": 64}
    check((theirs, on_picture), **given)
