"""Predictions: weights where techniques put them, work as techniques divide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.unit.plan.profiles import CPU, a_profile
from torch import nn

from leandiffusion import StableDiffusionPipeline
from leandiffusion.core.errors import ConfigError
from leandiffusion.device import capabilities
from leandiffusion.families.base import families
from leandiffusion.offload.engine import engine_of
from leandiffusion.offload.units import weight_bytes
from leandiffusion.plan.predict import Predictor, unet_calls
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.stack import make

Make = Callable[..., Predictor]


@pytest.mark.parametrize(("granularity", "slots"), [("leaf", 1), ("leaf", 2), ("block", 2)])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_ring_and_what_stays_are_the_engines_own(
    predictor: Make,
    folders: Any,
    fraction: float,
    granularity: str,
    slots: int,
) -> None:
    settings = {"resident_fraction": fraction, "granularity": granularity, "slots": slots}
    technique = make("sequential_offload", settings)
    told = predictor().residency((technique,))
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"], offload=technique)
    engine = engine_of(pipe.unet)
    assert engine is not None
    arena: Any = engine._conveyor._arena
    held = sum(
        tensor.nbytes
        for network in engine.networks.values()
        for tensor in (*network.parameters(), *network.buffers())
        if not getattr(tensor, "on_disk", False) and not any(tensor is each.weight for each in engine.looked_up)
    )
    assert told.kept == pytest.approx(held, rel=0.01)
    for network in {"text_encoder", "unet"} & set(told.running):
        arena.turn_to(network)
        assert told.running[network] == arena.nbytes
    assert told.ahead == (slots > 1)
    if not fraction:  # else what stays is spread over the VAE's encoder too, which is left out here
        held = [held.unit.name for parts in engine._held.values() for held in parts]
        units = {name for name in held if name.startswith("unet")}
        assert told.arrivals["unet"] == len(units)


def test_whole_components_take_turns(predictor: Make) -> None:
    some = predictor()
    networks = some.sketch().networks
    plain, turns = some.predict(()), some.predict((make("model_offload", {}),))
    for stage, name in (("encode", "text_encoder"), ("denoise", "unet"), ("decode", "vae")):
        others = sum(weight_bytes(network) for key, network in networks.items() if key != name)
        looked_up = sum(m.weight.nbytes for m in networks["text_encoder"].modules() if isinstance(m, nn.Embedding))
        own = looked_up if name == "text_encoder" else 0  # which is read where it lies
        saved = plain.stages[stage].peak - turns.stages[stage].peak
        assert saved == pytest.approx(others + own, rel=0.01)
        assert turns.stages[stage].seconds > plain.stages[stage].seconds  # it has to come


def test_whole_components_come_at_the_rate_measured_of_them(predictor: Make) -> None:
    """Once for all steps."""
    quick, slow = (
        predictor(profile=replace(a_profile(), load={"float32": rate})).predict((make("model_offload", {}),))
        for rate in (1e9, 1e6)
    )
    fetched = predictor().residency((make("model_offload", {}),)).fetched
    for stage, name in (("encode", "text_encoder"), ("denoise", "unet"), ("decode", "vae")):
        longer = slow.stages[stage].seconds - quick.stages[stage].seconds
        assert longer == pytest.approx(fetched[name] * (1e-6 - 1e-9), rel=1e-6)


def test_fetching_costs_time_by_what_is_fetched(predictor: Make) -> None:
    slow = predictor(profile=a_profile(fetch=1e5))
    times = [
        slow.predict((make("sequential_offload", {"resident_fraction": f}),)).stages["denoise"].seconds
        for f in (0.0, 0.5, 0.9)
    ]
    assert times[0] > times[1] > times[2] > slow.predict(()).stages["denoise"].seconds


def test_techniques_divide_a_step_together() -> None:
    call = CallSize(64, 64, 4)
    interval = make("guidance_interval", {"start": 0.0, "stop": 0.5})
    slicing = make("unet_slicing", {"size": 4})
    alone = CallSize(64, 64, 4, guidance=False)
    assert unet_calls(call, (interval,)) == {call: 0.5, alone: 0.5}
    assert unet_calls(call, (interval, slicing)) == {CallSize(64, 64, 2): 1.0, alone: 0.5}
    assert unet_calls(call, (make("deep_cache", {"interval": 3}),))[call] == pytest.approx(1.3 / 3)


def test_half_precision_halves(predictor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "EMULATED", ())  # a CPU with instructions for it
    some = predictor(256, 256)
    plain, half = some.predict(()), some.predict((make("half_precision", {"dtype": torch.bfloat16}),))
    floor = some.profile.floor + some._around_modules
    assert 0.4 < (half.stages["denoise"].peak - floor) / (plain.stages["denoise"].peak - floor) < 0.65
    assert half.seconds > 3 * plain.seconds  # as the profile says of this device


def test_networks_may_have_dtypes_of_their_own(folders: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe.unet.to(torch.bfloat16)
    blueprint = Blueprint.of_networks("tiny", pipe._stack.subject.networks, CPU)
    some = Predictor(blueprint, CallSize(64, 64), 20, a_profile())
    networks = some.sketch().networks
    assert (networks["unet"].dtype, networks["vae"].dtype) == (torch.bfloat16, torch.float32)
    loaded = {**pipe._stack.subject.networks, "vae": pipe.vae.decoder, "post": pipe.vae.post_quant_conv}
    assert some.residency(()).kept == sum(map(weight_bytes, loaded.values()))  # without the VAE's encoder


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "ssd1b", "vega"])
def test_families_are_known_without_a_checkpoint(name: str) -> None:
    family = families.get(name)
    blueprint = Blueprint.of_family(family, torch.float16, CPU)
    assert blueprint.side == family.size
    weights = {key: weight_bytes(part.build()) for key, part in blueprint.networks.items()}
    whole = family.footprint(torch.float16)
    assert weights.pop("vae") < 0.65 * whole.pop("vae")  # its encoder stays on disk
    assert weights == whole


def test_networks_of_others_cannot_be_planned(folders: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe.unet = torch.nn.Conv2d(4, 4, 1)
    with pytest.raises(ConfigError, match="the unet is a Conv2d, which is not this library's"):
        pipe.plan_for("1GiB")
    pipe.unet = None
    with pytest.raises(ConfigError, match="needs a UNet and a VAE"):
        pipe.plan_for("1GiB")


def test_other_components_lie_beside_them_unless_they_travel(folders: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    networks = {**pipe._stack.subject.networks, "safety_checker": torch.nn.Linear(1000, 1000)}
    without, beside = (Blueprint.of_networks("tiny", each, CPU) for each in (pipe._stack.subject.networks, networks))
    for techniques, extra in (((), 4_004_000), ((make("sequential_offload", {}),), 0)):
        peaks = [Predictor(each, CallSize(64, 64), 20, a_profile()).predict(techniques) for each in (without, beside)]
        assert peaks[1].peak - peaks[0].peak == extra
