"""LoRA adapters against diffusers with PEFT: the same files, weights and seeds, in float32.

Final latents within 1e-4 of their largest entry, as whole pipelines without adapters; each adapter moves them by far
more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity import lora_files as files

from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")

LATENTS, VISIBLE = 1e-4, 1e-2
FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(params=FAMILIES)
def pair(request: Any, tiny: Callable[[str], tuple[Any, Path]]) -> Any:
    """diffusers' pipeline and ours, from one folder; anew each time, as diffusers' keeps traces of adapters."""
    folder = tiny(request.param)[1]
    pair = diffusers.DiffusionPipeline.from_pretrained(folder), open_pipeline(folder)
    for pipe in pair:
        pipe.set_progress_bar_config(disable=True)
    return pair


def draw(pipe: Any, **arguments: Any) -> torch.Tensor:
    """Final latents of a red cat."""
    options = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"} | arguments
    return pipe("red cat", generator=torch.Generator().manual_seed(0), **options).images


def assert_alike(pair: Any, plain: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Both draw the same, and something else than without adapters."""
    theirs, ours = (draw(pipe, **arguments) for pipe in pair)
    assert (ours - theirs).abs().max() <= LATENTS * theirs.abs().max()
    assert (ours - plain).abs().max() > VISIBLE * plain.abs().max()
    return ours


def networks(pipe: Any) -> dict[str, Any]:
    parts = {name: getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")}
    return {name: part for name, part in parts.items() if part is not None}


def adapter(pipe: Any, seed: int, **settings: Any) -> files.State:
    state: files.State = {}
    for number, (name, network) in enumerate(networks(pipe).items()):
        state |= files.dotted(name, network, seed=seed + number, **settings)
    return state


def load(pair: Any, state: files.State, folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    for pipe in pair:
        pipe.load_lora_weights(str(folder), weight_name=path.name, adapter_name=name)


def test_an_adapter_on_all_networks_and_its_scale(pair: Any, tmp_path: Path) -> None:
    plain = draw(pair[1])
    load(pair, adapter(pair[1], seed=1), tmp_path, "one")
    whole = assert_alike(pair, plain)
    half = assert_alike(pair, plain, cross_attention_kwargs={"scale": 0.5})
    assert (whole - half).abs().max() > VISIBLE
    pair[1].unload_lora_weights()
    assert torch.equal(draw(pair[1]), plain)


def test_several_adapters_their_weights_and_switching(pair: Any, tmp_path: Path) -> None:
    plain = draw(pair[1])
    load(pair, adapter(pair[1], seed=1), tmp_path, "one")
    load(pair, adapter(pair[1], seed=7, rank=2), tmp_path, "two")
    assert pair[0].get_list_adapters() == pair[1].get_list_adapters()
    pictures = []
    for names, weights in ((["one", "two"], [0.7, 0.4]), (["two"], None), ("one", 0.3), (["two", "one"], 0.5)):
        for pipe in pair:
            pipe.set_adapters(names, weights)
        assert {*pair[0].get_active_adapters()} == {*pair[1].get_active_adapters()}
        pictures.append(assert_alike(pair, plain))
    assert len({float(picture.sum()) for picture in pictures}) == len(pictures)
    for pipe in pair:
        pipe.disable_lora()
    assert torch.equal(draw(pair[1]), plain)
    for pipe in pair:
        pipe.enable_lora()
    assert_alike(pair, plain)
    for pipe in pair:
        pipe.delete_adapters("one")
    assert pair[0].get_list_adapters() == pair[1].get_list_adapters()
    assert_alike(pair, plain)


def test_convolutions_feed_forwards_and_time(pair: Any, tmp_path: Path) -> None:
    plain = draw(pair[1])
    load(pair, files.dotted("unet", pair[1].unet, seed=3, which=files.EVERYTHING), tmp_path, "all")
    assert_alike(pair, plain)


def test_weights_by_block(pair: Any, tmp_path: Path) -> None:
    plain = draw(pair[1])
    load(pair, files.dotted("unet", pair[1].unet, seed=4), tmp_path, "one")
    ways = {
        way: [i for i, block in enumerate(getattr(pair[1].unet, f"{way}_blocks")) if hasattr(block, "attentions")]
        for way in ("down", "up")
    }
    count = len(pair[1].unet.up_blocks[ways["up"][0]].attentions)
    each = [0.2 * (i + 1) for i in range(count)]
    for weights in ({"down": 0.3, "mid": 1.5}, {"up": {f"block_{ways['up'][0]}": each}, "down": 0.0}):
        for pipe in pair:
            pipe.set_adapters("one", {"unet": weights})
        assert_alike(pair, plain)


def test_merged_and_given_back(pair: Any, tmp_path: Path) -> None:
    plain = draw(pair[1])
    load(pair, adapter(pair[1], seed=1), tmp_path, "one")
    beside = draw(pair[1])
    pair[1].fuse_lora()
    assert pair[1].fused_loras == {"one"}
    assert pair[1].num_fused_loras == 1
    merged = assert_alike(pair, plain)  # diffusers' beside the weights
    assert (merged - beside).abs().max() <= LATENTS * beside.abs().max()
    pair[1].unfuse_lora()
    assert torch.equal(draw(pair[1]), beside)
    pair[1].unload_lora_weights()
    assert torch.equal(draw(pair[1]), plain)


@pytest.mark.parametrize("pair", ["sd1", "sdxl"], indirect=True)
def test_the_layout_of_kohyas_trainers(pair: Any, tmp_path: Path) -> None:
    ours = pair[1]
    plain = draw(ours)
    two = hasattr(ours, "text_encoder_2")
    state = files.kohya("lora_unet", ours.unet, seed=2, which=files.TRANSFORMERS)
    state |= files.kohya("lora_te1" if two else "lora_te", ours.text_encoder, seed=3)
    if two:
        state |= files.kohya("lora_te2", ours.text_encoder_2, seed=4)
    save_file(state, tmp_path / "kohya.safetensors")
    for pipe in pair:
        pipe.load_lora_weights(tmp_path / "kohya.safetensors", adapter_name="kohya")
    assert_alike(pair, plain)
