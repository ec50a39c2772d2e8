"""LoRAs that are saved here, read by diffusers with PEFT, and drawn with by both. Tolerances as in test_lora."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.parity import lora_files as files
from tests.parity.test_lora import LATENTS, VISIBLE, adapter, draw, networks

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import NotSupported
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")


def both(folder: Path) -> tuple[Any, Any]:
    pair = diffusers.DiffusionPipeline.from_pretrained(folder), open_pipeline(folder)
    for pipe in pair:
        pipe.set_progress_bar_config(disable=True)
    return pair


@pytest.mark.parametrize("layout", ["kohya", "dotted"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_was_loaded_is_saved_as_diffusers_reads_it(
    family: str, layout: str, tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    """Kohya's with an alpha of its own too: the scale is in the numbers then."""
    theirs, ours = both(tiny(family)[1])
    plain = draw(ours)
    if layout == "dotted":
        state = adapter(ours, seed=1)
    else:
        state = files.kohya("lora_unet", ours.unet, seed=1, which=files.EVERYTHING, alpha=3.0)
        state |= files.kohya("lora_te1" if family == "sdxl" else "lora_te", ours.text_encoder, seed=2, alpha=3.0)
    save_file(state, tmp_path / "given.safetensors")
    ours.load_lora_weights(tmp_path / "given.safetensors", adapter_name="one")
    expected = draw(ours)
    assert (expected - plain).abs().max() > VISIBLE * plain.abs().max()
    ours.save_lora_weights(tmp_path / "saved", **ours.lora_layers("one"))
    theirs.load_lora_weights(str(tmp_path / "saved"))
    assert (draw(theirs) - expected).abs().max() <= LATENTS * expected.abs().max()
    ours.unload_lora_weights()
    ours.load_lora_weights(tmp_path / "saved", weight_name="pytorch_lora_weights.safetensors")
    assert (draw(ours) - expected).abs().max() <= LATENTS * expected.abs().max()


def test_layers_that_peft_trained(tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    """The same file as diffusers writes, metadata included."""
    theirs, ours = both(tiny("sd1")[1])
    theirs.unet.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    layers = peft.get_peft_model_state_dict(theirs.unet)
    settings = {"r": 2, "lora_alpha": 4, "target_modules": {"to_v", "to_q"}}
    for name, cls in (("theirs", type(theirs)), ("ours", type(ours))):
        cls.save_lora_weights(tmp_path / name, unet_lora_layers=layers, unet_lora_adapter_metadata=dict(settings))
    one, other = (tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("theirs", "ours"))
    told, same = load_file(one), load_file(other)
    assert told.keys() == same.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in told.items())
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert b.metadata().keys() == a.metadata().keys()
    expected = draw(theirs)
    ours.load_lora_weights(tmp_path / "ours", weight_name=other.name)
    assert (draw(ours) - expected).abs().max() <= LATENTS * expected.abs().max()


def test_what_cannot_be_saved_is_told(tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    pipe = open_pipeline(tiny("sd1")[1])
    save, one = StableDiffusionPipeline.save_lora_weights, torch.zeros(1)
    (tmp_path / "file").write_text("")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path, {}, "no layers to save"),
        (tmp_path, {"unet_lora_layers": {"mid_block.x.weight": one}}, "is no factor of a LoRA of the unet"),
        (tmp_path, {"unet_lora_layers": {"conv_in.lora_A.weight": 1}}, "is a int, expected a tensor"),
        (tmp_path, {"safe_serialization": False}, "a pickle"),
        (tmp_path / "file", {"unet_lora_layers": {"conv_in.lora_A.weight": one}}, "is a file"),
    ]
    for folder, asked, told in cases:
        with pytest.raises(ConfigError, match=told):
            save(folder, **asked)
    with pytest.raises(ConfigError, match="0 adapters are loaded"):
        pipe.lora_layers()
    pipe.load_lora_weights(adapter(pipe, seed=1), adapter_name="one")
    with pytest.raises(ConfigError, match="no adapter 'two' is loaded"):
        pipe.lora_layers("two")
    assert {*pipe.lora_layers()} == {f"{name}_lora_layers" for name in networks(pipe)}
    save(tmp_path / "nothing", **pipe.lora_layers(), is_main_process=False)
    assert not (tmp_path / "nothing").exists()
    found: list[str] = []
    save(tmp_path / "own", **pipe.lora_layers(), save_function=lambda tensors, path: found.append(path))
    assert found == [str(tmp_path / "own" / "pytorch_lora_weights.safetensors")]


def test_products_of_factors_have_no_place(tiny: Callable[[str], tuple[Any, Path]]) -> None:
    pipe = open_pipeline(tiny("sd1")[1])
    rows, columns = pipe.unet.time_embedding.linear_1.weight.shape
    layer = "lora_unet_time_embedding_linear_1"
    factors = {
        f"hada_w{i}_{side}": torch.ones(rows, 1) if side == "a" else torch.ones(1, columns)
        for i in (1, 2)
        for side in "ab"
    }
    pipe.load_lora_weights({f"{layer}.{name}": factor for name, factor in factors.items()}, adapter_name="loha")
    with pytest.raises(NotSupported, match="merge them into the model with fuse_lora"):
        pipe.lora_layers("loha")
