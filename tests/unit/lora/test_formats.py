"""Layouts of LoRA files, and kinds of factors, against plain products in float64 that are merged into the weights.

Predictions of a tiny UNet agree within 1e-4 of the largest: float32 sums in another order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity import lora_files as files
from torch import Tensor

from leandiffusion import StableDiffusionPipeline, TensorMismatch, UNet2DConditionModel, UnsafeFormat, WeightsError
from leandiffusion.core.errors import MalformedFile, NotSupported
from leandiffusion.lora.adapters import Adapters, change
from leandiffusion.lora.find import find_lora
from leandiffusion.lora.fit import fit
from leandiffusion.lora.read import METADATA, read_lora
from leandiffusion.modules.lora import LoraConv2d, LoraLinear, adapted_layers
from leandiffusion.weights.convert import original_unet_names

CLOSE, VISIBLE = 1e-4, 1e-2


def make_unet(width: int = 24) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
    )  # fmt: skip
    return unet.eval()


@torch.no_grad()
def predict(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 24, generator=generator)
    return unet(x, 7, text).sample


def load(unet: Any, source: Any, weight: float = 1.0) -> None:
    adapters = Adapters()
    adapters.loaded = {"x": fit(read_lora(source), {"unet": unet})["unet"]}
    adapters.weights = {"x": weight}
    change({"unet": unet}, {"unet": adapters})


def assert_adds(source: Any, changes: dict[str, Tensor]) -> None:
    """The file makes the UNet predict what one with these changes merged predicts."""
    unet, merged = make_unet(), make_unet()
    plain = predict(unet)
    with torch.no_grad():
        for layer, delta in changes.items():
            weight = merged.get_submodule(layer).weight
            weight.copy_(weight.double() + delta.double().reshape(weight.shape))
    load(unet, source)
    expected, found = predict(merged), predict(unet)
    assert (expected - plain).abs().max() > VISIBLE * plain.abs().max()
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()
    change({"unet": unet}, {"unet": Adapters()})
    assert not adapted_layers(unet)
    assert torch.equal(predict(unet), plain)


def products(state: dict[str, Tensor], key: Any, unet: Any) -> dict[str, Tensor]:
    """Layer -> up down alpha / r, of a state in kohya's layout or with dots."""
    changes = {}
    for name, _ in files.layers(unet, files.EVERYTHING):
        down = state.get(f"{key(name)}.lora_down.weight")
        if down is not None:
            up, alpha = state[f"{key(name)}.lora_up.weight"], state.get(f"{key(name)}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            changes[name] = scale * (up.double().flatten(1) @ down.double().flatten(1))
    return changes


def test_kohya_with_convolutions(tmp_path: Path) -> None:
    unet = make_unet()
    state = files.kohya("lora_unet", unet, which=files.EVERYTHING)
    save_file(state, tmp_path / "x.safetensors")
    assert_adds(tmp_path / "x.safetensors", products(state, lambda name: "lora_unet_" + name.replace(".", "_"), unet))


@pytest.mark.parametrize("form", ["underscores", "dots"])
def test_names_of_the_original_network(form: str) -> None:
    unet = make_unet()
    names = [name for name, _ in files.layers(unet, files.EVERYTHING)]
    config = {"block_out_channels": (16, 32), "layers_per_block": 1}
    originals = {ours: original for original, ours in original_unet_names(names, config).items()}
    assert originals.keys() == {*names}
    state = files.kohya("lora_unet", unet, which=files.EVERYTHING, rename=originals.__getitem__)
    changes = products(state, lambda name: "lora_unet_" + originals[name].replace(".", "_"), unet)
    if form == "dots":
        flat = {"lora_unet_" + name.replace(".", "_"): f"diffusion_model.{name}" for name in originals.values()}
        state = {flat[key.split(".")[0]] + key[key.index(".") :]: tensor for key, tensor in state.items()}
    assert_adds(state, changes)


@pytest.mark.parametrize("style", ["processor", "peft", "peft named", "diffusers", "bare"])
def test_layouts_with_dots(style: str) -> None:
    unet = make_unet()
    state = files.kohya("x", unet)
    changes = products(state, lambda name: "x_" + name.replace(".", "_"), unet)
    given = {}
    for name in changes:
        down, up, alpha = (
            state[f"x_{name.replace('.', '_')}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        layer, _, projection = name.replace(".to_out.0", ".to_out").rpartition(".")
        ends = {
            "processor": (f"unet.{layer}.processor.{projection}_lora", "down.weight", "up.weight"),
            "bare": (f"{layer}.processor.{projection}_lora", "down.weight", "up.weight"),
            "peft": (f"base_model.model.unet.{name}", "lora_A.weight", "lora_B.weight"),
            "peft named": (f"unet.{name}", "lora_A.default.weight", "lora_B.default.weight"),
            "diffusers": (f"unet.{name}.lora", "down.weight", "up.weight"),
        }[style]
        before, after = f"{ends[0]}.{ends[1]}", f"{ends[0]}.{ends[2]}"
        given |= {before: down, after: up * float(alpha) / len(down)}
    assert_adds(given, changes)


@pytest.mark.parametrize("rslora", [False, True])
def test_settings_in_the_metadata(rslora: bool, tmp_path: Path) -> None:
    unet = make_unet()
    state = files.dotted("unet", unet, rank=4)
    special = next(name for name, _ in files.layers(unet))
    settings = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {special: 1}, "unet.use_rslora": rslora}
    save_file(state, tmp_path / "x.safetensors", {METADATA: json.dumps(settings)})
    changes = {}
    for name, _ in files.layers(unet):
        scale = (1 if name == special else 2) / (2 if rslora else 4)
        up, down = (state[f"unet.{name}.lora_{letter}.weight"].double().flatten(1) for letter in "BA")
        changes[name] = scale * up @ down
    assert_adds(tmp_path / "x.safetensors", changes)


LINEAR, CONV = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.0.resnets.0.conv1"


def random(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_loha(layer: str) -> None:
    out, ins, *kernel = make_unet().get_submodule(layer).weight.shape
    inside = ins * (9 if kernel else 1)
    a1, b1, a2, b2 = random(out, 3), random(3, inside), random(out, 3) + 0.5, random(3, inside) - 0.5
    key = "lora_unet_" + layer.replace(".", "_")
    state = {f"{key}.hada_w1_a": a1, f"{key}.hada_w1_b": b1, f"{key}.hada_w2_a": a2, f"{key}.hada_w2_b": b2}
    state[f"{key}.alpha"] = torch.tensor(12.0)
    assert_adds(state, {layer: 4.0 * (a1.double() @ b1.double()) * (a2.double() @ b2.double())})


def test_loha_of_convolutions_with_a_core() -> None:
    out, ins = make_unet().get_submodule(CONV).weight.shape[:2]
    parts = {f"hada_{name}": random(*shape) + 0.2 * i for i, (name, shape) in enumerate({
        "w1_a": (3, out), "w1_b": (3, ins), "t1": (3, 3, 3, 3), "w2_a": (3, out), "w2_b": (3, ins), "t2": (3, 3, 3, 3),
    }.items())}  # fmt: skip
    whole = [
        torch.einsum("rskl,ro,si->oikl", *(parts[f"hada_{n}"].double() for n in (f"t{i}", f"w{i}_a", f"w{i}_b")))
        for i in (1, 2)
    ]
    key = "lora_unet_" + CONV.replace(".", "_")
    state = {f"{key}.{name}": tensor for name, tensor in parts.items()} | {f"{key}.alpha": torch.tensor(3.0)}
    assert_adds(state, {CONV: whole[0] * whole[1]})


@pytest.mark.parametrize("form", ["whole", "low rank", "convolution"])
def test_lokr(form: str) -> None:
    layer = CONV if form == "convolution" else LINEAR
    out, ins, *kernel = make_unet().get_submodule(layer).weight.shape
    one, other = random(4, 2), random(out // 4, ins // 2, *kernel) + 0.1
    key = "lora_unet_" + layer.replace(".", "_")
    state, scale = {f"{key}.lokr_w1": one, f"{key}.alpha": torch.tensor(6.0)}, 1.0
    if form == "whole":
        state[f"{key}.lokr_w2"] = other
    else:
        a, b = random(out // 4, 3), random(3, ins // 2, *kernel) + 0.3
        other, scale = (a @ b.flatten(1)).reshape(other.shape), 2.0
        state |= {f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b.flatten(1)}
    whole = torch.kron(one.double().reshape(4, 2, *[1] * len(kernel)), other.double())
    assert_adds(state, {layer: scale * whole})


def test_locon_with_a_core() -> None:
    out, ins = make_unet().get_submodule(CONV).weight.shape[:2]
    down, mid, up = random(3, ins, 1, 1), random(3, 3, 3, 3), random(out, 3, 1, 1)
    key = "lora_unet_" + CONV.replace(".", "_")
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up}
    whole = torch.einsum("or,rskl,si->oikl", up.double().flatten(1), mid.double(), down.double().flatten(1))
    assert_adds(state, {CONV: whole})


def test_layers_stay_the_same_objects_with_the_same_weights() -> None:
    unet = make_unet()
    modules, weights, names = [*unet.modules()], {id(p) for p in unet.parameters()}, [*unet.state_dict()]
    load(unet, files.dotted("unet", unet, which=files.EVERYTHING))
    kinds = {type(layer) for layer in adapted_layers(unet).values()}
    assert kinds == {LoraLinear, LoraConv2d}
    assert [*unet.modules()] == modules
    assert {id(p) for p in unet.parameters()} == weights
    assert [*unet.state_dict()] == names


# -- files that are something else ---------------------------------------------------------------------------------


def refusal(state: dict[str, Tensor], unet: Any = None, error: type[Exception] = TensorMismatch) -> str:
    with pytest.raises(error) as raised:
        fit(read_lora(state), {"unet": unet or make_unet()})
    assert len(str(raised.value)) < 500
    return str(raised.value)


def test_another_families_lora_says_which(tmp_path: Path) -> None:
    sdxl = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.zeros(4, 2048)}
    sdxl["lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight"] = torch.zeros(640, 4)
    sd1 = make_unet(768)
    text = refusal(sdxl, sd1)
    assert "for Stable Diffusion XL" in text
    assert "this model is Stable Diffusion 1" in text
    assert "for Flux" in refusal({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 8)})
    assert "for Flux" in refusal({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 8)})


def test_what_is_no_lora_is_named() -> None:
    good = files.dotted("unet", make_unet())
    assert "unet.something.else" in refusal(good | {"unet.something.else": torch.zeros(1)})
    text = refusal({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)})
    assert "whole checkpoint" in text
    assert "from_single_file" in text
    assert "no tensors" in refusal({})


def test_layers_that_are_not_there_and_other_shapes() -> None:
    good = files.dotted("unet", make_unet())
    down = "unet.mid_block.attentions.9.to_q.lora_A.weight"
    assert "mid_block.attentions.9.to_q" in refusal(
        good | {down: torch.zeros(4, 8), down.replace("A", "B"): torch.zeros(8, 4)}
    )
    key = next(key for key in good if "attn1" in key and "lora_A" in key)
    text = refusal(good | {key: torch.zeros(4, 7)})
    assert "(4, 7)" in text
    assert "(16, 16)" in text
    lacking = {name: tensor for name, tensor in good.items() if name != key}
    assert "do not make up" in refusal(lacking) or "not those of" in refusal(lacking)


def test_text_encoders_that_are_not_there() -> None:
    good = files.dotted("unet", make_unet())
    assert "text_encoder" in refusal(
        good | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 8)}
    )


@pytest.mark.parametrize("name", ["dora_scale", "diff"])
def test_what_is_no_sum_of_factors_is_refused_by_name(name: str) -> None:
    key = "lora_unet_" + LINEAR.replace(".", "_")
    state = files.kohya("lora_unet", make_unet()) | {f"{key}.{name}": torch.zeros(16, 1)}
    assert "not supported" in refusal(state, error=NotSupported)


def test_pickles_folders_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"pickle")
    with pytest.raises(UnsafeFormat, match="safetensors"):
        read_lora(find_lora(tmp_path / "x.pt"))
    with pytest.raises(UnsafeFormat, match="pickles"):
        find_lora(tmp_path)
    state = files.dotted("unet", make_unet())
    for name in ("a", "b"):
        save_file(state, tmp_path / f"{name}.safetensors", {METADATA: "{"})
    with pytest.raises(FileNotFoundError, match=r"weight_name, of a.safetensors, b.safetensors"):
        find_lora(tmp_path)
    with pytest.raises(MalformedFile, match="not JSON"):
        read_lora(find_lora(tmp_path, weight_name="a.safetensors"))
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    assert find_lora(tmp_path).name == "pytorch_lora_weights.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_lora(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("layout", ["dotted", "kohya"])
def test_a_lora_is_no_checkpoint(layout: str, tmp_path: Path) -> None:
    unet = make_unet()
    state = files.dotted("unet", unet) if layout == "dotted" else files.kohya("lora_unet", unet)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is a LoRA, expected a whole checkpoint"):
        StableDiffusionPipeline.from_single_file(tmp_path / "x.safetensors")
