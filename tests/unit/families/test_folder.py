"""Pipeline folders: what is opened, in which variant, what is left on disk, and every way a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion.core.errors import CheckpointNotFound, ConfigError, MalformedFile, TensorMismatch, UnsafeFormat
from leandiffusion.families import families
from leandiffusion.families.folder import open_folder, read_index
from leandiffusion.modules.text import CLIPTextModel
from leandiffusion.modules.tokenizer import CLIPTokenizer
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.schedulers import DDIMScheduler
from leandiffusion.weights.stored import StoredTensor

STEM = "diffusion_pytorch_model"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    vae.save_pretrained(folder / "vae")
    CLIPTextModel(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(folder / "text_encoder")
    CLIPTokenizer.standard().save_pretrained(folder / "tokenizer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "pipe")


def change_index(folder: Path, **changes: Any) -> None:
    (folder / "model_index.json").write_text(json.dumps({**INDEX, **changes}))


def test_index(folder: Path) -> None:
    index = read_index(folder)
    assert index.pipeline == "StableDiffusionPipeline"
    assert index.components["safety_checker"] is None
    assert index.settings == {"requires_safety_checker": False}


def test_everything_opens(folder: Path) -> None:
    names: list[str] = []
    opened = open_folder(folder, progress=names.append)
    assert {name: type(thing).__name__ for name, thing in opened.items()} == {
        name: value[1] or "NoneType" for name, value in INDEX.items() if isinstance(value, list)
    }
    assert names == ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
    assert all(not opened[name].training for name in ("unet", "vae", "text_encoder"))


def test_what_text_to_image_does_not_need_stays_on_disk(folder: Path) -> None:
    def stays_on_disk(**leave_out: Any) -> bool:
        encoder = open_folder(folder, **leave_out)["vae"].encoder
        return all(isinstance(p, StoredTensor) for p in encoder.parameters())

    assert stays_on_disk()
    assert not any(stays_on_disk(leave_out=names) for names in ({}, {"AutoencoderKL": ("quant_conv.",)}))


def test_dtypes_by_component(folder: Path) -> None:
    opened = open_folder(folder, dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert opened["vae"].dtype == torch.float32
    assert opened["unet"].dtype == opened["text_encoder"].dtype == torch.bfloat16
    assert open_folder(folder, dtype=torch.float16)["vae"].dtype == torch.float16
    assert open_folder(folder)["vae"].dtype == torch.float32


def test_given_components_are_not_looked_for(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    change_index(folder, vae=["diffusers", "AutoencoderTiny"])
    sentinel = object()
    opened = open_folder(folder, components={"unet": None, "vae": sentinel, "extra": 1})
    assert opened["unet"] is None
    assert opened["vae"] is sentinel
    assert opened["extra"] == 1


def test_former_names(folder: Path) -> None:
    change_index(folder, tokenizer=["transformers", "CLIPTokenizerFast"])
    assert isinstance(open_folder(folder)["tokenizer"], CLIPTokenizer)


def test_variants(folder: Path) -> None:
    for name, stem in (("unet", STEM), ("text_encoder", "model")):
        (folder / name / f"{stem}.safetensors").rename(folder / name / f"{stem}.fp16.safetensors")
    with pytest.warns(UserWarning, match=r"no 'fp16' variant of vae: the plain weights"):
        open_folder(folder, variant="fp16")
    with pytest.raises(CheckpointNotFound, match=r"unet has no .*variant='fp16'"):
        open_folder(folder)
    with pytest.raises(CheckpointNotFound, match=r"unet has no .*bf16.*variant='fp16'"):
        open_folder(folder, variant="bf16")


def test_not_a_pipeline_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"vae has no model_index\.json.*one component"):
        open_folder(folder / "vae")
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        open_folder(tmp_path / "nowhere")
    single = tmp_path / "single"
    single.mkdir()
    with pytest.raises(CheckpointNotFound, match="holds: nothing"):
        open_folder(single)
    (single / "v1-5.safetensors").touch()
    with pytest.raises(CheckpointNotFound, match=r"v1-5\.safetensors.*from_single_file"):
        open_folder(single)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ("{}", "names no components"),
        ('{"unet": ["diffusers"]}', r"expected a \[library, class\] pair"),
        ('{"unet": {"a": 1}}', r"expected a \[library, class\] pair"),
    ],
)
def test_broken_indexes(folder: Path, text: str, told: str) -> None:
    (folder / "model_index.json").write_text(text)
    with pytest.raises(MalformedFile, match=told) as caught:
        open_folder(folder)
    assert str(folder / "model_index.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("unet", "DDIMScheduler"), ("unet", "AutoencoderKL"), ("vae", "CLIPTokenizer"), ("scheduler", "AutoencoderKL"),
        ("tokenizer", "CLIPTextModel"), ("text_encoder", "CLIPImageProcessor"), ("text_encoder", "LCMScheduler"),
    ],
)  # fmt: skip
def test_classes_of_another_kind(folder: Path, name: str, cls: str) -> None:
    change_index(folder, **{name: ["diffusers", cls]})
    with pytest.raises(ConfigError, match=f"component '{name}': '{cls}' is another kind.*Expected.*{name}=…"):
        open_folder(folder)


def test_unknown_classes(folder: Path) -> None:
    for name, cls in (("unet", "UNet3DConditionModel"), ("scheduler", "FlowMatchEulerDiscreteScheduler")):
        change_index(folder, **{name: ["diffusers", cls]})
        with pytest.raises(ConfigError, match=f"component '{name}': '{cls}' is not supported.*Supported.*{name}=…"):
            open_folder(folder)


def test_missing_component_folder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointNotFound, match="no folder 'vae'"):
        open_folder(folder)


def test_trouble_is_found_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leandiffusion.weights.read import TensorReader

    monkeypatch.setattr(TensorReader, "_read", lambda *_: pytest.fail("weights were read"))
    weights = folder / "text_encoder" / "model.safetensors"
    weights.rename(folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match=r"text_encoder has only pickled weights \(pytorch_model\.bin\)"):
        open_folder(folder)
    with pytest.raises(ConfigError, match="use_safetensors=False"):
        open_folder(folder, use_safetensors=False)


def test_broken_components(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "latent_chanels": 4}))
    with pytest.raises(ConfigError, match=r"vae/config\.json.*latent_chanels=4.*latent_channels"):
        open_folder(folder)
    config.write_text(json.dumps({**values, "latent_channels": 8}))
    with pytest.raises(TensorMismatch, match=r"encoder\.conv_out\.weight: expected .* found"):
        open_folder(folder)
    config.write_text("{")
    with pytest.raises(MalformedFile, match=r"vae/config\.json"):
        open_folder(folder)
    config.write_text(json.dumps(values))
    (folder / "scheduler" / "scheduler_config.json").write_text("not json")
    with pytest.raises(MalformedFile, match=r"scheduler_config\.json"):
        open_folder(folder)


def test_footprints_are_the_published_sizes() -> None:
    """Parameter counts of the released models, two bytes each."""
    assert families.get("sd1").footprint(torch.float16) == {
        "text_encoder": 2 * 123_060_480, "unet": 2 * 859_520_964, "vae": 2 * 83_653_863
    }  # fmt: skip
    assert families.get("sdxl").footprint(torch.float32)["unet"] == 4 * 2_567_463_684
    assert {"sd1", "sd2", "sdxl"} <= set(families)
