"""Single files in the original layouts, made here from the original architectures' own numbering of their modules.

Two judges that know nothing of our key maps: the networks at full size, whose every weight must get a tensor of its
shape; and diffusers' converters, which must send the same tensor to the same place.
"""

from __future__ import annotations

import json
import math
import socket
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as oracle
from safetensors.torch import save_file

from leandiffusion.core.errors import CheckpointNotFound, ConfigError, TensorMismatch, UnsafeFormat, WeightsError
from leandiffusion.families import detect, families
from leandiffusion.families.folder import component_class
from leandiffusion.families.single_file import open_single_file
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.weights.build import build_empty
from leandiffusion.weights.check import check_tensors, named_for
from leandiffusion.weights.convert import under
from leandiffusion.weights.header import TensorEntry
from leandiffusion.weights.stored import StoredTensor

Shapes = dict[str, tuple[int, ...]]


def dense(name: str, out: int, inside: int, *kernel: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, inside, *kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def ldm_resnet(name: str, inside: int, out: int, emb: int) -> Shapes:
    shapes = norm(f"{name}.in_layers.0", inside) | dense(f"{name}.in_layers.2", out, inside, 3, 3)
    shapes |= dense(f"{name}.emb_layers.1", out, emb) | norm(f"{name}.out_layers.0", out)
    shapes |= dense(f"{name}.out_layers.3", out, out, 3, 3)
    return shapes | (dense(f"{name}.skip_connection", out, inside, 1, 1) if inside != out else {})


def ldm_transformer(name: str, size: int, depth: int, context: int, linear: bool) -> Shapes:
    kernel = () if linear else (1, 1)
    shapes = norm(f"{name}.norm", size) | dense(f"{name}.proj_in", size, size, *kernel)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, keys in (("attn1", size), ("attn2", context)):
            shapes |= dense(f"{block}.{attention}.to_q", size, size, bias=False)
            shapes |= dense(f"{block}.{attention}.to_k", size, keys, bias=False)
            shapes |= dense(f"{block}.{attention}.to_v", size, keys, bias=False)
            shapes |= dense(f"{block}.{attention}.to_out.0", size, size)
        for i in (1, 2, 3):
            shapes |= norm(f"{block}.norm{i}", size)
        shapes |= dense(f"{block}.ff.net.0.proj", 8 * size, size) | dense(f"{block}.ff.net.2", size, 4 * size)
    return shapes | dense(f"{name}.proj_out", size, size, *kernel)


def ldm_unet(
    base: int, mult: tuple[int, ...], depth: tuple[int, ...], mid_depth: int, context: int, *,
    inside: int = 4, linear: bool = False, adm: int | None = None, up_depth: tuple[int, ...] = (),
) -> Shapes:  # fmt: skip
    """Walks through the original constructor: blocks are appended one by one and numbered as they come. `up_depth` has
    the depth behind each resnet of the up path, where these differ; without a `mid_depth` the middle is one resnet."""
    emb, channels, stack, n = 4 * base, base, [base], 1
    shapes = dense("time_embed.0", emb, base) | dense("time_embed.2", emb, emb)
    if adm:
        shapes |= dense("label_emb.0.0", emb, adm) | dense("label_emb.0.2", emb, emb)
    shapes |= dense("input_blocks.0.0", base, inside, 3, 3)
    for level, m in enumerate(mult):
        for _ in range(2):
            shapes |= ldm_resnet(f"input_blocks.{n}.0", channels, m * base, emb)
            channels = m * base
            if depth[level]:
                shapes |= ldm_transformer(f"input_blocks.{n}.1", channels, depth[level], context, linear)
            stack.append(channels)
            n += 1
        if level < len(mult) - 1:
            shapes |= dense(f"input_blocks.{n}.0.op", channels, channels, 3, 3)
            stack.append(channels)
            n += 1
    shapes |= ldm_resnet("middle_block.0", channels, channels, emb)
    if mid_depth:
        shapes |= ldm_transformer("middle_block.1", channels, mid_depth, context, linear)
        shapes |= ldm_resnet("middle_block.2", channels, channels, emb)
    n = 0
    for level, m in reversed(list(enumerate(mult))):
        for i in range(3):
            shapes |= ldm_resnet(f"output_blocks.{n}.0", channels + stack.pop(), m * base, emb)
            channels, place = m * base, 1
            if depth[level]:
                deep = up_depth[n] if up_depth else depth[level]
                shapes |= ldm_transformer(f"output_blocks.{n}.1", channels, deep, context, linear)
                place = 2
            if level and i == 2:
                shapes |= dense(f"output_blocks.{n}.{place}.conv", channels, channels, 3, 3)
            n += 1
    return shapes | norm("out.0", base) | dense("out.2", 4, base, 3, 3)


def ldm_vae(base: int, mult: tuple[int, ...]) -> Shapes:
    def resnet(name: str, inside: int, out: int) -> Shapes:
        shapes = norm(f"{name}.norm1", inside) | dense(f"{name}.conv1", out, inside, 3, 3)
        shapes |= norm(f"{name}.norm2", out) | dense(f"{name}.conv2", out, out, 3, 3)
        return shapes | (dense(f"{name}.nin_shortcut", out, inside, 1, 1) if inside != out else {})

    def middle(name: str, size: int) -> Shapes:
        shapes = resnet(f"{name}.block_1", size, size) | resnet(f"{name}.block_2", size, size)
        shapes |= norm(f"{name}.attn_1.norm", size)
        for layer in ("q", "k", "v", "proj_out"):
            shapes |= dense(f"{name}.attn_1.{layer}", size, size, 1, 1)
        return shapes

    channels, top = base, mult[-1] * base
    shapes = dense("encoder.conv_in", base, 3, 3, 3)
    for level, m in enumerate(mult):
        for block in range(2):
            shapes |= resnet(f"encoder.down.{level}.block.{block}", channels, m * base)
            channels = m * base
        if level < len(mult) - 1:
            shapes |= dense(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    shapes |= middle("encoder.mid", top) | norm("encoder.norm_out", top) | dense("encoder.conv_out", 8, top, 3, 3)
    shapes |= dense("decoder.conv_in", top, 4, 3, 3) | middle("decoder.mid", top)
    channels = top
    for level, m in reversed(list(enumerate(mult))):
        for block in range(3):
            shapes |= resnet(f"decoder.up.{level}.block.{block}", channels, m * base)
            channels = m * base
        if level:
            shapes |= dense(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    shapes |= norm("decoder.norm_out", base) | dense("decoder.conv_out", 3, base, 3, 3)
    return shapes | dense("quant_conv", 8, 8, 1, 1) | dense("post_quant_conv", 4, 4, 1, 1)


def clip_text(size: int, layers: int, vocab: int) -> Shapes:
    shapes: Shapes = {
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.token_embedding.weight": (vocab, size),
        "text_model.embeddings.position_embedding.weight": (77, size),
    }
    for i in range(layers):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            shapes |= dense(f"{layer}.self_attn.{part}_proj", size, size)
        shapes |= norm(f"{layer}.layer_norm1", size) | norm(f"{layer}.layer_norm2", size)
        shapes |= dense(f"{layer}.mlp.fc1", 4 * size, size) | dense(f"{layer}.mlp.fc2", size, 4 * size)
    return shapes | norm("text_model.final_layer_norm", size)


def open_clip_text(size: int, layers: int, vocab: int, projection: int) -> Shapes:
    shapes: Shapes = {
        "positional_embedding": (77, size),
        "text_projection": (size, projection),
        "logit_scale": (),
        "token_embedding.weight": (vocab, size),
    }
    for i in range(layers):
        layer = f"transformer.resblocks.{i}"
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * size, size), f"{layer}.attn.in_proj_bias": (3 * size,)}
        shapes |= dense(f"{layer}.attn.out_proj", size, size)
        shapes |= norm(f"{layer}.ln_1", size) | norm(f"{layer}.ln_2", size)
        shapes |= dense(f"{layer}.mlp.c_fc", 4 * size, size) | dense(f"{layer}.mlp.c_proj", size, 4 * size)
    return shapes | norm("ln_final", size)


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def original(kind: str, *, tiny: bool = False, inside: int = 4) -> Shapes:
    """Every tensor of a checkpoint of that kind. `tiny`: the same structure of names with small layers."""
    base, vae, vocab = (32, 32, 99) if tiny else (320, 128, 49408)
    big = kind in LIKE_SDXL or kind == REFINER
    clip, open_clip = ((16, 2), (24, 3)) if tiny else ((768, 12), (1280, 32) if big else (1024, 24))
    shapes = prefixed("first_stage_model.", ldm_vae(vae, (1, 2, 4, 4)))
    shapes |= {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.decay": ()}
    if kind in LIKE_SDXL:
        depth, mid_depth, up_depth = LIKE_SDXL[kind]
        unet = ldm_unet(
            base, (1, 2, 4), depth, mid_depth, 2048, inside=inside, linear=True, adm=2816, up_depth=up_depth
        )  # fmt: skip
        shapes |= prefixed("conditioner.embedders.0.transformer.", clip_text(*clip, vocab))
        shapes |= prefixed("conditioner.embedders.1.model.", open_clip_text(*open_clip, vocab, open_clip[0]))
    elif kind == REFINER:
        base = 32 if tiny else 384
        unet = ldm_unet(base, (1, 2, 4, 4), (0, 4, 4, 0), 4, 1280, inside=inside, linear=True, adm=2560)
        shapes |= prefixed("conditioner.embedders.0.model.", open_clip_text(*open_clip, vocab, open_clip[0]))
    elif kind == "sd2":
        unet = ldm_unet(base, (1, 2, 4, 4), (1, 1, 1, 0), 1, 1024, inside=inside, linear=True)
        shapes |= prefixed("cond_stage_model.model.", open_clip_text(*open_clip, vocab, open_clip[0]))
    else:
        unet = ldm_unet(base, (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, inside=inside)
        shapes |= prefixed("cond_stage_model.transformer.", clip_text(*clip, vocab))
    return shapes | prefixed("model.diffusion_model.", unet)


LIKE_SDXL = {
    "sdxl": ((0, 2, 10), 10, ()),
    "ssd1b": ((0, 2, 4), 0, (4, 4, 10, 2, 1, 1, 0, 0, 0)),
    "vega": ((0, 1, 2), 0, ()),
}
"""Depths of the down path by level, of the middle, and of the up path by resnet."""

REFINER = "sdxl_refiner"

TINY: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [32, 64, 128, 128]},
    "clip": {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2},
    "open_clip": {"vocab_size": 99, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 3,
                  "num_attention_heads": 2},
}  # fmt: skip


def tiny_configs(kind: str, folder: Path, inside: int = 4) -> Path:
    """config.json files for the networks of `original(kind, tiny=True)`."""
    levels = [32, 64, 128] if kind in LIKE_SDXL else [32, 64, 128, 128]
    configs = {
        "vae": TINY["vae"],
        "unet": {"block_out_channels": levels, "in_channels": inside, "attention_head_dim": 4},
    }
    if kind != REFINER:
        configs["text_encoder"] = TINY["clip"]
    if kind in LIKE_SDXL or kind == REFINER:
        configs["text_encoder_2"] = TINY["open_clip"] | {"projection_dim": 24}
    if kind == "sd2":
        configs["text_encoder"] = TINY["open_clip"] | {"num_hidden_layers": 2}
    for name, config in configs.items():
        full = families.get(kind).networks[name].config
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({**full, **config}))
    return folder


def entries(shapes: Shapes) -> dict[str, TensorEntry]:
    """As a header would describe them, float16."""
    return {
        name: TensorEntry(Path("f"), name, torch.float16, shape, 0, 2 * math.prod(shape))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("kind", "inside", "parameters"),
    [
        ("sd1", 4, 859_520_964),
        ("sd1", 9, 859_535_364),
        ("sd2", 4, 865_910_724),
        ("sdxl", 4, 2_567_463_684),
        ("ssd1b", 4, 1_331_334_404),
        ("vega", 4, 745_225_604),
        ("sdxl_refiner", 4, 2_259_526_660),
    ],
)
def test_full_size(kind: str, inside: int, parameters: int) -> None:
    """Detected by its names; every weight of every network gets its tensor, none is left over. Published UNet sizes."""
    tensors = entries(original(kind, inside=inside))
    family = detect(tensors)
    assert (family.name, family.networks["unet"].config["in_channels"]) == (kind, inside)
    for name, part in family.networks.items():
        cls = component_class(part.class_name)
        network = build_empty(lambda cls=cls, part=part: cls.from_config(part.config))
        check_tensors(network, named_for(cls, part.convert(under(tensors, part.prefix), part.config)))
        if name == "unet":
            assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("kind", sorted(families))
@pytest.mark.parametrize(
    ("component", "convert"),
    [("unet", oracle.convert_ldm_unet_checkpoint), ("vae", oracle.convert_ldm_vae_checkpoint)],
)
def test_names_agree_with_diffusers(kind: str, component: str, convert: Callable[..., dict[str, Any]]) -> None:
    """The full list of names: each tensor, known by a number, goes where diffusers sends it."""
    part = families.get(kind).networks[component]
    names = [name for name in original(kind) if name.startswith(part.prefix)]
    numbered = {name: torch.tensor([i]) for i, name in enumerate(names)}
    config = {"class_embed_type": None, "addition_embed_type": None, **part.config}
    expected = {name: names[int(tensor)] for name, tensor in convert(dict(numbered), config).items()}
    ours = part.convert(under(entries(original(kind)), part.prefix), part.config)
    assert {name: entry.name for name, entry in ours.items()} == expected


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path, dict[str, torch.Tensor]]]:
    """Makes a tiny file: its path, the folder of its configs, its tensors."""

    def make(kind: str, inside: int = 4, drop: str | None = None, **extra: torch.Tensor) -> Any:
        folder = tmp_path_factory.mktemp(kind)
        generator = torch.Generator().manual_seed(1)
        state = {
            name: torch.arange(77)[None] if name.endswith("position_ids") else torch.randn(shape, generator=generator)
            for name, shape in original(kind, tiny=True, inside=inside).items()
            if drop is None or not name.startswith(drop)
        } | extra
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors", tiny_configs(kind, folder / "configs", inside), state

    return make


def expected_text(state: Mapping[str, torch.Tensor], prefix: str, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    if f"{prefix}positional_embedding" not in state:
        named = oracle.convert_ldm_clip_checkpoint({k: v for k, v in state.items() if k.startswith(prefix)})
        return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}
    named = oracle.convert_open_clip_checkpoint(network, dict(state), prefix=prefix)
    return {name: tensor for name, tensor in named.items() if name in network.state_dict()}


@pytest.mark.parametrize("kind", sorted(families))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_values_agree_with_diffusers(write: Any, kind: str, dtype: torch.dtype | None, monkeypatch: Any) -> None:
    """Bit for bit: conversion only moves numbers. Nothing tries to reach a network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    path, configs, state = write(kind)
    opened = open_single_file(path, config=configs, dtype=dtype, leave_out={}, prediction_type="epsilon")
    strict = {"strict": True, "assign": True}  # by diffusers' own count nothing is missing or left over
    for name, part in families.get(kind).networks.items():
        if name == "unet":
            expected = oracle.convert_ldm_unet_checkpoint(dict(state), dict(opened[name].config))
            with torch.device("meta"):
                diffusers.UNet2DConditionModel(**opened[name].config).load_state_dict(expected, **strict)
        elif name == "vae":
            expected = oracle.convert_ldm_vae_checkpoint(dict(state), dict(opened[name].config))
            with torch.device("meta"):
                diffusers.AutoencoderKL(**opened[name].config).load_state_dict(expected, **strict)
        else:
            expected = expected_text(state, part.prefix, opened[name])
        ours = opened[name].state_dict()
        assert ours.keys() == expected.keys(), name
        for key, tensor in expected.items():
            assert torch.equal(ours[key], tensor.to(dtype or tensor.dtype)), f"{name}: {key}"


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", sorted(families))
def test_a_unet_of_a_file(write: Any, kind: str, alone: bool, tmp_path: Path) -> None:
    """Equal to the whole checkpoint's."""
    path, configs, state = write(kind, **({"v_pred": torch.ones(1)} if kind == "sd2" else {}))
    expected = open_single_file(path, config=configs)["unet"].state_dict()
    if alone:
        path = tmp_path / "unet.safetensors"
        prefix = "model.diffusion_model."
        save_file({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, path)
    for config in (configs / "unet",) if alone else (configs,):
        unet = UNet2DConditionModel.from_single_file(str(path), config=config, torch_dtype=torch.float64)
        assert unet.dtype == torch.float64
        for name, tensor in unet.state_dict().items():
            assert torch.equal(tensor, expected[name].double()), name


def test_a_file_without_a_unet(tmp_path: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="unknown kind"):
        UNet2DConditionModel.from_single_file(tmp_path / "x.safetensors")


def stays_on_disk(module: Any) -> bool:
    return all(isinstance(p, StoredTensor) for p in module.parameters())


def test_the_other_components(write: Any) -> None:
    path, configs, _ = write("sdxl")
    opened = open_single_file(path, config=configs)
    assert opened["scheduler"].__class__.__name__ == "EulerDiscreteScheduler"
    assert opened["tokenizer"].pad_token == "<|endoftext|>"
    assert opened["tokenizer_2"].pad_token == "!"
    assert stays_on_disk(opened["vae"].encoder)  # not needed for text to image …
    assert not stays_on_disk(opened["vae"].decoder)
    picture = torch.zeros(1, 3, 16, 16)
    assert torch.isfinite(opened["vae"].encode(picture).latent_dist.mean).all()  # … but comes when it is
    sentinel = object()
    opened = open_single_file(path, config=configs, components={"unet": sentinel, "text_encoder_2": None})
    assert opened["unet"] is sentinel
    assert opened["text_encoder_2"] is None


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_rest_of_clip_beside_the_text_model(write: Any, kind: str) -> None:
    """Some tools save CLIP-L's projection and logit scale with it, which Stable Diffusion does not use."""
    prefix = families.get(kind).networks["text_encoder"].prefix
    extra = {f"{prefix}text_projection.weight": torch.zeros(2, 2), f"{prefix}logit_scale": torch.zeros(())}
    path, configs, state = write(kind, **extra)
    key = "text_model.final_layer_norm.weight"
    assert torch.equal(
        open_single_file(path, config=configs)["text_encoder"].state_dict()[key], state[f"{prefix}{key}"]
    )


def test_inpainting(write: Any) -> None:
    path, configs, _ = write("sd1", inside=9)
    assert open_single_file(path, config=configs)["unet"].config.in_channels == 9
    path, configs, _ = write("sd1", inside=8)
    with pytest.raises(ConfigError, match="8 channels; supported are 4"):
        open_single_file(path, config=configs)


def prediction(path: Path, configs: Path, **options: Any) -> str:
    return open_single_file(path, config=configs, **options)["scheduler"].config.prediction_type


def test_sd2_prediction(write: Any, tmp_path: Path) -> None:
    path, configs, _ = write("sd2")
    with pytest.warns(UserWarning, match="does not tell whether it predicts noise"):
        assert prediction(path, configs) == "v_prediction"
    yaml = tmp_path / "v2-inference.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in ("epsilon", "v_prediction"):
            assert prediction(path, configs, prediction_type=value) == value
        yaml.write_text("model:\n  params:\n    linear_start: 0.00085\n")
        assert prediction(path, configs, original_config=yaml) == "epsilon"
        yaml.write_text('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n')
        assert prediction(path, configs, original_config=yaml) == "v_prediction"
        assert prediction(*write("sd2", inside=9)[:2]) == "epsilon"
        assert prediction(*write("sd2", global_step=torch.tensor(875_000))[:2]) == "epsilon"
    with pytest.raises(ConfigError, match="prediction_type='noise'"):
        prediction(path, configs, prediction_type="noise")
    with pytest.raises(CheckpointNotFound, match="not fetched"):
        prediction(path, configs, original_config="https://example.org/v2-inference.yaml")


def test_marks_of_fine_tuning_tools(write: Any) -> None:
    path, configs, _ = write("sdxl", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    scheduler = open_single_file(path, config=configs)["scheduler"]
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr


def test_a_scheduler_in_the_config_folder(write: Any) -> None:
    path, configs, _ = write("sd2")
    (configs / "scheduler").mkdir()
    settings = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}
    (configs / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    scheduler = open_single_file(path, config=configs)["scheduler"]
    assert type(scheduler).__name__ == "EulerDiscreteScheduler"
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("names", "error", "told"),
    [
        (["lora_unet_down_blocks_0.alpha"], WeightsError, "LoRA"),
        (["control_model.time_embed.0.weight"], WeightsError, "--controlnet FILE"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], ConfigError, "Flux"),
        (["down_blocks.0.resnets.0.norm1.weight"], WeightsError, "diffusers layout"),
        (["encoder.down.0.block.0.norm1.weight"], WeightsError, "a VAE, expected"),
        (["transformer.h.0.attn.bias"], WeightsError, "unknown kind"),
    ],
)
def test_other_kinds_of_file(tmp_path: Path, names: list[str], error: type[Exception], told: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(error, match=told) as caught:
        open_single_file(tmp_path / "x.safetensors")
    assert str(tmp_path) in str(caught.value)


def test_what_is_missing(write: Any, tmp_path: Path) -> None:
    path, configs, _ = write("sd1", drop="cond_stage_model.")
    with pytest.raises(TensorMismatch, match=r"no text_encoder.*Pass text_encoder="):
        open_single_file(path, config=configs)
    assert open_single_file(path, config=configs, components={"text_encoder": None})["text_encoder"] is None
    path, configs, _ = write("sd1", drop="model.diffusion_model.middle_block.1.proj")
    with pytest.raises(TensorMismatch, match=r"4 missing.*\n.*\n.*mid_block\.attentions\.0\.proj_in\.weight"):
        open_single_file(path, config=configs)
    with pytest.raises(UnsafeFormat):
        open_single_file(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        open_single_file(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointNotFound, match="not a local folder"):
        open_single_file(path, config="runwayml/stable-diffusion-v1-5")
    with pytest.raises(ConfigError, match="Did you mean 'sdxl'"):
        open_single_file(path, family="sdlx")
    with pytest.raises(TensorMismatch, match="of another shape"):  # full-size settings for a tiny file
        open_single_file(write("sd1")[0])
