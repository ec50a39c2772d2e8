"""Networks switched by hand while a pipeline's techniques are on: each undo takes back its own part and no other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.attention import backends
from leandiffusion.attention.sliced import Sliced
from leandiffusion.modules.transformer import attention_layers


@pytest.fixture
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*untraced.*")
        return pipe("a red circle", generator=generator, num_inference_steps=2, output_type="np", height=64).images


def kernels(pipe: Any) -> set[Any]:
    return {layer.backend for _, layer in attention_layers(pipe.unet)}


SDPA, PLAIN = backends.get("sdpa"), backends.get("plain")


@pytest.mark.parametrize(
    ("name", "by_hand", "left"),
    [
        ("attention_slicing", lambda unet: unet.set_attention_backend("plain"), PLAIN),
        ("attention_slicing", lambda unet: unet.set_attention_slice(1), Sliced(SDPA, 1)),
        ("attention_slicing", lambda unet: unet.set_attention_slice(None), SDPA),
        ("attention_slicing", lambda unet: unet.set_default_attn_processor(), SDPA),
        ("attention_backend", lambda unet: unet.set_attention_slice(1), Sliced(SDPA, 1)),
        ("attention_backend", lambda unet: unet.reset_attention_backend(), SDPA),
        ("attention_backend", lambda unet: None, SDPA),
        ("attention_slicing", lambda unet: None, SDPA),
    ],
)
def test_what_was_switched_by_hand_stays(pipe: Any, name: str, by_hand: Callable[[Any], None], left: Any) -> None:
    settings = {"attention_slicing": {"size": "max"}, "attention_backend": {"backend": "plain"}}
    pipe.enable(name, **settings[name])
    by_hand(pipe.unet)
    pipe.disable(name)
    assert kernels(pipe) == {left}


def test_techniques_over_a_processor_of_ones_own(pipe: Any) -> None:
    """A kernel replaces it and gives it back; slices are refused before anything changes."""
    plain, processor = draw(pipe), AttnProcessor()
    pipe.unet.set_attn_processor(processor)
    own = draw(pipe)
    np.testing.assert_allclose(own, plain, atol=1e-4)  # the same sums in another order
    with pytest.raises(ConfigError, match="AttnProcessor, a processor of your own"):
        pipe.enable_attention_slicing()
    assert set(pipe.unet.attn_processors.values()) == {processor}
    pipe.set_attention_backend("plain")
    assert kernels(pipe) == {PLAIN}
    pipe.disable("attention_backend")
    assert set(pipe.unet.attn_processors.values()) == {processor}
    assert np.array_equal(draw(pipe), own)


def test_a_traced_unet_is_switched_like_any(pipe: Any) -> None:
    """What changes the graph is not drawn with the old one; 1e-4, because a trace may order sums otherwise."""
    plain = draw(pipe)
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    other = draw(pipe)
    pipe.unet.disable_freeu()
    pipe.enable_traced_unet()
    np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    np.testing.assert_allclose(draw(pipe), other, atol=1e-4)
    pipe.unet.disable_freeu()
    calls: list[int] = []

    def counting(attn: Any, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        calls.append(1)
        return AttnProcessor()(attn, hidden_states, **others)

    pipe.unet.set_attn_processor(counting)
    for _ in range(2):  # runs each time, and not only while a trace is made
        before = len(calls)
        np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
        assert len(calls) > before
    pipe.disable("traced_unet")
    pipe.unet.set_default_attn_processor()
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize("offload", ["enable_sequential_cpu_offload", "enable_model_cpu_offload"])
def test_switches_of_a_network_whose_weights_travel(pipe: Any, offload: str) -> None:
    plain = draw(pipe)
    getattr(pipe, offload)()
    pipe.unet.set_attn_processor(AttnProcessor())
    np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
    pipe.unet.set_default_attn_processor()
    pipe.unet.set_attention_backend("plain")
    np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
    pipe.unet.reset_attention_backend()
    assert np.array_equal(draw(pipe), plain)
