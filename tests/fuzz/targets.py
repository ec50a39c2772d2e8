"""What is fuzzed: each file of a model or picture that anyone may have written, and how it is opened."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from tokenizers import pre_tokenizers

from leandiffusion.families.folder import open_folder
from leandiffusion.lora.fit import fit
from leandiffusion.lora.read import METADATA, read_lora
from leandiffusion.modules.clip_image_processor import CLIPImageProcessor
from leandiffusion.modules.safety import StableDiffusionSafetyChecker
from leandiffusion.modules.text import CLIPTextModel, CLIPTextModelWithProjection
from leandiffusion.modules.tokenizer import CLIPTokenizer
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.pictures.record import PictureRecord, Recipe, read_record
from leandiffusion.schedulers import schedulers
from leandiffusion.weights.files import weight_files
from leandiffusion.weights.header import read_header
from leandiffusion.weights.locate import index_components

from .damage import damaged_bytes, damaged_header, damaged_json, damaged_png

CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = CLIP | {"image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_act": "quick_gelu"}
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 16, "attention_head_dim": [2, 4], "transformer_layers_per_block": [1, 1],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
}  # fmt: skip
VAE = {"block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
       "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
RECIPE = Recipe("demo", "a red circle", "", 7, 20, 7.5, None, 128, 64, "float32", "cpu")


@dataclass(frozen=True)
class Target:
    """A kind of file: the one at `path` is replaced by what `damage` makes, then `open` opens what it belongs to."""

    kind: str
    path: Path
    damage: Callable[[Random], bytes]
    open: Callable[[], object]


def make_targets(folder: Path) -> list[Target]:
    """Write whole, tiny files of every kind into `folder`; the targets among them, kind by kind."""
    torch.manual_seed(0)
    makers = (_headers, _loras, _networks, _schedulers, _processors, _tokenizers, _pipelines, _shards, _pictures)
    return [target for make in makers for target in make(folder)]


def _json_target(kind: str, path: Path, open_: Callable[[], object], text: str | None = None) -> Target:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Target(kind, path, lambda random: damaged_json(value, random), open_)


def _headers(folder: Path) -> Iterator[Target]:
    path = folder / "header" / "f.safetensors"
    path.parent.mkdir()
    entries = (("a", "F32", [2, 3], 24), ("b", "F16", [4], 8), ("c", "I64", [], 8), ("e", "F32", [0, 4], 0))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    yield Target("header", path, lambda random: damaged_header(header, bytes(at), random), lambda: read_header(path))


def _loras(folder: Path) -> Iterator[Target]:
    """One whose header is damaged, and one whose settings are."""
    unet = UNet2DConditionModel(**UNET)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    out, ins = unet.get_submodule(layer).weight.shape
    header: dict[str, Any] = {"__metadata__": {}}
    at = 0
    for name, shape in {"lora_A.weight": [2, ins], "lora_B.weight": [out, 2], "alpha": []}.items():
        size = 4 * math.prod(shape)
        header[f"unet.{layer}.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    plain = {name: each for name, each in header.items() if not name.endswith("alpha")}
    settings = {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"to_k": 2}, "unet.use_rslora": True}

    def with_settings(text: str) -> bytes:
        described = json.dumps(plain | {"__metadata__": {METADATA: text}}).encode()
        return struct.pack("<Q", len(described)) + described + bytes(at - 4)

    def damaged_settings(random: Random) -> bytes:
        return with_settings(damaged_json(settings, random).decode("utf-8", "replace"))

    for number, damage in enumerate((lambda random: damaged_header(header, bytes(at), random), damaged_settings)):
        path = folder / "lora" / f"{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(with_settings(json.dumps(settings)))
        yield Target("lora", path, damage, lambda file=path: fit(read_lora(file), {"unet": unet}))


def _networks(folder: Path) -> Iterator[Target]:
    made = {
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(vocab_size=600, **CLIP),
        "text_encoder_2": CLIPTextModelWithProjection(vocab_size=600, projection_dim=8, **CLIP),
        "safety_checker": StableDiffusionSafetyChecker(vision_config=VISION, projection_dim=8),
    }
    for name, network in made.items():
        where = folder / "pipeline" / name
        network.save_pretrained(where)
        yield _json_target("config", where / "config.json", lambda n=network, w=where: type(n).from_pretrained(w))


def _schedulers(folder: Path) -> Iterator[Target]:
    for name in schedulers:
        cls: Any = schedulers.get(name)
        where = folder / "schedulers" / name
        cls().save_pretrained(where)
        path = where / "scheduler_config.json"
        yield _json_target("scheduler", path, lambda c=cls, w=where: _take_steps(c.from_pretrained(w)))


def _take_steps(scheduler: Any) -> None:
    scheduler.set_timesteps(4)
    sample = torch.ones(1, 4, 2, 2)
    for t in scheduler.timesteps[:2]:
        sample = scheduler.step(scheduler.scale_model_input(sample, t) * 0.5, t, sample).prev_sample


def _processors(folder: Path) -> Iterator[Target]:
    where = folder / "pipeline" / "feature_extractor"
    CLIPImageProcessor(size=16, crop_size=8).save_pretrained(where)
    picture = Image.new("RGB", (20, 12))
    path = where / "preprocessor_config.json"
    yield _json_target("processor", path, lambda: CLIPImageProcessor.from_pretrained(where)(picture))


def _tokenizers(folder: Path) -> Iterator[Target]:
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=24)
    whole, serialized = folder / "pipeline" / "tokenizer", folder / "serialized"
    for where in (whole, serialized):
        tokenizer.save_pretrained(where)
        (where / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": len(tokens) - 1}), encoding="utf-8")
        settings = json.loads((where / "tokenizer_config.json").read_text(encoding="utf-8"))
        if where == serialized:
            del settings["added_tokens_decoder"]
            (where / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    vocab = json.loads((whole / "vocab.json").read_text(encoding="utf-8"))
    model = {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]}
    added = [{"id": len(tokens) - 1, "content": "<|endoftext|>", "special": True, "lstrip": False}]
    (serialized / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}), encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        (serialized / name).unlink()
    for where in (whole, serialized):
        for path in sorted(where.iterdir()):
            open_: Callable[[], object] = lambda w=where: CLIPTokenizer.from_pretrained(w)(  # noqa: E731
                "a red cat", padding="max_length", truncation=True
            )
            if path.suffix == ".json":
                yield _json_target("tokenizer", path, open_)
            else:
                content = path.read_bytes()
                yield Target("tokenizer", path, lambda random, c=content: damaged_bytes(c, random), open_)


def _pipelines(folder: Path) -> Iterator[Target]:
    where = folder / "pipeline"
    index = {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.30.0",
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "force_zeros_for_empty_prompt": True,
    }  # fmt: skip
    path = where / "model_index.json"
    path.write_text(json.dumps(index), encoding="utf-8")
    schedulers.get("DDIMScheduler")().save_pretrained(where / "scheduler")
    yield _json_target("index", path, lambda: (index_components(path), open_folder(where)))


def _shards(folder: Path) -> Iterator[Target]:
    where = folder / "shards"
    CLIPTextModel(vocab_size=600, **CLIP).save_pretrained(where, max_shard_size=4000)
    path = where / "model.safetensors.index.json"
    yield _json_target("shards", path, lambda: [read_header(file) for file in weight_files(where, "model")])


def _pictures(folder: Path) -> Iterator[Target]:
    path = folder / "picture.png"
    record = PictureRecord(RECIPE, "DDIMScheduler", seconds={"load": 1.0}, versions={"torch": "2.9"})
    Image.new("RGB", (8, 8)).save(path, pnginfo=record.png_info())
    values = json.loads(record.to_json())
    yield Target("picture", path, lambda random: damaged_png(values, random), lambda: read_record(path))
