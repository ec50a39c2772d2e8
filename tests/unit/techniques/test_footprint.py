"""Estimates from shapes: in the right order, and near what was measured on full-size networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from leandiffusion.families.base import families
from leandiffusion.families.folder import component_class
from leandiffusion.techniques import techniques
from leandiffusion.techniques.footprint import CallSize, Footprint, plain_footprint
from leandiffusion.techniques.subject import Subject
from leandiffusion.weights.build import build_empty


@dataclass
class Shape:
    """A full-size SD1.5 without weights, as far as estimates look at a pipeline."""

    unet: Any
    vae: Any
    text_encoder: Any
    vae_scale_factor: int = 8

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}


@pytest.fixture(scope="module")
def sd15() -> Shape:
    parts = families.get("sd1").networks
    made = {}
    for name in ("unet", "vae", "text_encoder"):
        cls, config = component_class(parts[name].class_name), parts[name].config
        made[name] = build_empty(lambda cls=cls, config=config: cls.from_config(config))
    return Shape(**made)


def with_techniques(footprint: Footprint, *names: str) -> Footprint:
    for name in names:
        footprint = techniques.get(name)().estimate(footprint)
    return footprint


@pytest.mark.parametrize("size", [512, 768, 1024])
def test_the_order_of_peaks(sd15: Shape, size: int) -> None:
    plain = plain_footprint(Subject(sd15), CallSize(size, size))
    peaks = [
        with_techniques(plain, "half_precision", "attention_slicing", "vae_tiling", "sequential_offload").peak,
        with_techniques(plain, "half_precision", "vae_tiling", "sequential_offload").peak,
        with_techniques(plain, "half_precision", "vae_tiling", "model_offload").peak,
        with_techniques(plain, "half_precision", "vae_tiling").peak,
        with_techniques(plain, "vae_tiling").peak,
    ]
    assert peaks == sorted(peaks)
    assert peaks[1] < peaks[2] < peaks[3] < peaks[4]


def test_weights_are_counted_exactly(sd15: Shape) -> None:
    parameters = sum(p.numel() for network in sd15.components.values() for p in network.parameters())
    for stage in plain_footprint(Subject(sd15), CallSize(512, 512)).stages.values():
        assert stage.own + stage.others == 4 * parameters


def test_near_what_was_measured(sd15: Shape) -> None:
    """Peaks of full-size float32 networks in MiB, as VmHWM during a decode and a guided step of 512 px."""
    for size, measured in ((512, 807), (1024, 3088)):
        decode = plain_footprint(Subject(sd15), CallSize(size, size)).stages["decode"]
        assert 0.5 < (decode.activations + decode.attention) / 2**20 / measured < 2
    denoise = plain_footprint(Subject(sd15), CallSize(512, 512)).stages["denoise"]
    assert 0.5 < (denoise.activations + denoise.attention) / 2**20 / 412 < 2


def test_slicing_makes_a_batch_as_cheap_as_one(sd15: Shape) -> None:
    one, many = (plain_footprint(Subject(sd15), CallSize(512, 512, batch=n)) for n in (1, 8))
    assert many.stages["decode"].activations == 8 * one.stages["decode"].activations
    assert with_techniques(many, "vae_slicing").stages["decode"] == one.stages["decode"]


def test_slicing_cuts_kernels_that_keep_their_scores(sd15: Shape) -> None:
    from leandiffusion.attention import backends
    from leandiffusion.modules.transformer import set_attention_backend

    set_attention_backend(sd15.unet, backends.get("plain"))
    plain = plain_footprint(Subject(sd15), CallSize(1024, 1024)).stages["denoise"]
    assert plain.attention == 2 * 2 * 8 * 128**4 * 4  # two matrices for two rows of eight heads
    sliced = with_techniques(plain_footprint(Subject(sd15), CallSize(1024, 1024)), "attention_slicing").stages[
        "denoise"
    ]
    assert sliced.attention == plain.attention // 2
    set_attention_backend(sd15.unet, backends.get("sdpa"))
    assert torch.get_default_dtype() == torch.float32
