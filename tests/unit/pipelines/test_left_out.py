"""The VAE's encoder, which text-to-image does not need: no memory is spent on it, and it is there for whoever asks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from leandiffusion import AutoencoderKL, StableDiffusionPipeline, demo
from leandiffusion.weights.stored import StoredTensor

PICTURE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(demo.model_folder(), subfolder="vae")


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def on_disk(vae: nn.Module) -> set[str]:
    return {name for name, p in vae.named_parameters() if isinstance(p, StoredTensor) and p.on_disk}


SETUPS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda pipe: None,
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "half precision": lambda pipe: pipe.enable("half_precision", dtype=torch.bfloat16),
    "slicing": lambda pipe: pipe.enable_vae_slicing(),
    "tiling": lambda pipe: pipe.enable_vae_tiling(),
    "channels-last": lambda pipe: pipe.enable_channels_last(),
    "compiled": lambda pipe: pipe.enable_compile(backend="eager", parts=("vae",)),
    "another dtype": lambda pipe: pipe.to(torch.float64),
}


@torch.no_grad()
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_it_encodes_whatever_is_on(setup: Callable[[Any], Any], pipe: Any, whole: AutoencoderKL) -> None:
    expected = whole.encode(PICTURE).latent_dist.mean
    setup(pipe)
    pipe("a red circle", num_inference_steps=1, height=64, width=64)
    encoder = {name for name, _ in whole.named_parameters() if name.startswith(("encoder.", "quant_conv."))}
    assert encoder <= on_disk(pipe.vae)  # drawing read nothing of it
    found = pipe.vae.encode(PICTURE.to(pipe.vae.dtype)).latent_dist.mean
    assert encoder <= on_disk(pipe.vae), "encoding gave its weights up again"
    # bfloat16 keeps 8 bits of numbers up to about 4; else the orders of sums differ
    assert (found.float() - expected).abs().max() < (0.05 if pipe.vae.dtype == torch.bfloat16 else 1e-4)
    pipe.to("cpu")
    assert pipe.vae.state_dict().keys() == whole.state_dict().keys()


def test_every_way_of_looking_at_a_network_shows_it(pipe: Any, whole: AutoencoderKL) -> None:
    vae = pipe.vae
    assert dict(vae.named_modules()).keys() == dict(whole.named_modules()).keys()
    assert sum(p.numel() for p in vae.parameters()) == sum(p.numel() for p in whole.parameters())
    for other in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert all(torch.equal(other.state_dict()[name] + 0, t) for name, t in whole.state_dict().items())
    assert on_disk(vae)


def test_the_new_encoder_is_saved_beside_the_new_decoder(pipe: Any, whole: AutoencoderKL, tmp_path: Any) -> None:
    other = {name: tensor * 0.5 for name, tensor in whole.state_dict().items()}
    pipe.vae.load_state_dict(other)
    pipe.save_pretrained(tmp_path)
    saved = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in other.items())


def test_programs_that_take_a_network_apart(pipe: Any) -> None:
    class Decoder(nn.Module):
        def __init__(self, vae: nn.Module) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.vae.decode(z).sample

    decoder, z = Decoder(pipe.vae), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        exported = torch.export.export(decoder, (z,)).module()
        assert torch.allclose(exported(z), decoder(z), atol=1e-5)
