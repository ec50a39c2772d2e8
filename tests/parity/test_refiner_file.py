"""SDXL's refiner in one file: diffusers opens the same file, and both draw the same with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity.conftest import NOISE, TOKENS, make_tokenizer
from tests.parity.test_single_file import open_clip_text, original, prefixed, tiny_configs

import leandiffusion
from leandiffusion import ConfigError
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

KIND, LATENTS, WIDTH = "sdxl_refiner", 1e-4, 1280
TEXT = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "projection_dim": WIDTH, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small one whose text is as wide as a real one's, and a folder with its settings, as diffusers needs."""
    folder = tmp_path_factory.mktemp("refiner")
    prefix = "conditioner.embedders.0.model."
    shapes = {name: shape for name, shape in original(KIND, tiny=True).items() if not name.startswith(prefix)}
    shapes |= prefixed(prefix, open_clip_text(WIDTH, 2, len(TOKENS), WIDTH))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            state[name] = 0.1 * noise + name.endswith(".weight")  # of norms
        else:
            state[name] = noise * (1.3 / torch.Size(shape[1:]).numel() ** 0.5 if "embedding" not in name else 0.3)
    save_file(state, folder / "model.safetensors")
    configs = tiny_configs(KIND, folder / "configs")
    text = configs / "text_encoder_2" / "config.json"
    known = json.loads(text.read_text()) | TEXT | {"vocab_size": len(TOKENS), "num_attention_heads": 4}
    ends = {"bos_token_id": len(TOKENS) - 2, "eos_token_id": len(TOKENS) - 1}
    text.write_text(json.dumps(known | ends | {"architectures": ["CLIPTextModelWithProjection"]}))
    diffusers.EulerDiscreteScheduler(**NOISE).save_pretrained(configs / "scheduler")
    make_tokenizer("!").save_pretrained(configs / "tokenizer_2")
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline", "_diffusers_version": "0.30.0", "text_encoder": [None, None],
        "tokenizer": [None, None], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False,
    }  # fmt: skip
    (configs / "model_index.json").write_text(json.dumps(index))
    return folder / "model.safetensors", configs


@pytest.fixture(scope="module")
def pair(file: tuple[Path, Path]) -> tuple[Any, Any]:
    path, configs = file
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline.from_single_file(
        str(path), config=str(configs), local_files_only=True, add_watermarker=False
    )
    tokenizer = leandiffusion.CLIPTokenizer.from_pretrained(configs / "tokenizer_2")
    ours = open_pipeline(path, config=configs, tokenizer_2=tokenizer)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


def draw(pipe: Any, **more: Any) -> torch.Tensor:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    arguments = {"prompt": "a red cat", "image": image, "strength": 0.5, "num_inference_steps": 6} | more
    return pipe(output_type="latent", generator=torch.Generator().manual_seed(0), **arguments).images


def test_it_opens_as_one(pair: tuple[Any, Any], file: tuple[Path, Path]) -> None:
    ours = pair[1]
    assert type(ours) is leandiffusion.StableDiffusionXLImg2ImgPipeline
    assert ours.config.requires_aesthetics_score is True
    assert ours.config.force_zeros_for_empty_prompt is False
    assert ours.text_encoder is None
    assert type(leandiffusion.StableDiffusionXLInpaintPipeline.from_single_file(file[0], config=file[1])).__name__
    plain = leandiffusion.StableDiffusionXLImg2ImgPipeline.from_single_file(
        file[0], config=file[1], requires_aesthetics_score=False
    )
    assert plain.config.requires_aesthetics_score is False
    with pytest.raises(ConfigError, match="so StableDiffusionPipeline cannot run it"):
        leandiffusion.StableDiffusionPipeline.from_single_file(file[0], config=file[1])


@pytest.mark.parametrize("own", [{}, {"aesthetic_score": 2.0}, {"prompt": "the", "negative_prompt": "an"}], ids=str)
def test_parity(pair: tuple[Any, Any], own: dict[str, Any]) -> None:
    expected, got = (draw(pipe, **own) for pipe in pair)
    assert (expected - got).abs().max() < LATENTS * expected.abs().max()
    if own:
        assert (got - draw(pair[1])).abs().max() > 10 * LATENTS * got.abs().max()


def test_it_travels_from_its_file(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    expected = draw(ours)
    ours.enable_sequential_cpu_offload()
    got = draw(ours)
    ours.disable("sequential_offload")
    assert (expected - got).abs().max() < LATENTS * expected.abs().max()
