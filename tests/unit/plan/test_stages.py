"""Stages traced on networks without weights against the same stages of the packaged model run for real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tests.unit.plan.real import real_ops
from tools.count_work import latents, open_demo

from leandiffusion.attention import backends
from leandiffusion.attention.sliced import Sliced
from leandiffusion.core.errors import ConfigError
from leandiffusion.core.malloc import HIGHEST, LARGE, MEDIUM
from leandiffusion.demo import model_folder
from leandiffusion.device import capabilities
from leandiffusion.families.base import families
from leandiffusion.measure.work import allocated_bytes
from leandiffusion.modules import vae_tiles
from leandiffusion.modules.transformer import set_attention_backend
from leandiffusion.plan import stages
from leandiffusion.plan.empty import empty_networks
from leandiffusion.plan.stages import trace_stage, trace_stages
from leandiffusion.plan.work import Ops
from leandiffusion.run.conditioning import Conditioning
from leandiffusion.run.decoding import decode
from leandiffusion.run.run import Run
from leandiffusion.run.size import CallSize
from leandiffusion.run.tasks.text_to_image import TextToImage

CALL = CallSize(128, 128)


def sums(ops: tuple[Ops, ...]) -> Mapping[str, tuple[int, float]]:
    """Of each kind that multiplies: how many, and their operations."""
    kinds = ("conv", "matmul", "attention")
    return {k: (sum(o.count for o in ops if o.kind == k), sum(o.flops for o in ops if o.kind == k)) for k in kinds}


@pytest.fixture
def networks() -> dict[str, Any]:
    return empty_networks(model_folder())


@pytest.mark.parametrize("change", ["", "channels-last", "strips", "slices of attention", "half"])
def test_a_decode_is_traced_operation_by_operation(
    networks: dict[str, Any], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it does but for looking at the picture afterwards; in half precision, computed in float32."""
    pipe, dtype = open_demo(), torch.bfloat16 if change == "half" else torch.float32
    monkeypatch.setattr(capabilities, "EMULATED", capabilities.HALF)
    pipe.vae.to(dtype)
    networks["vae"].to(dtype)
    for vae in (pipe.vae, networks["vae"]):
        if change == "strips":
            vae.enable_tiling(rows=16)
        if change == "channels-last":
            vae.to(memory_format=torch.channels_last)
        if change == "slices of attention":
            set_attention_backend(vae, Sliced(backends.get("plain"), "max"))
    real = real_ops(lambda: pipe.vae.decode(latents(1).to(dtype)))
    traced = trace_stages({"vae": networks["vae"]}, CALL)["decode"].ops
    assert sums(traced) == sums(real)


def _second_step(pipe: Any, call: CallSize) -> Callable[[], object]:
    """A prediction at a step after the first, which makes keys and values of the text."""
    pipe._guidance_scale, pipe._guidance_rescale = 7.5 if call.guidance else 1.0, 0.0
    run = Run(
        model=pipe, task=TextToImage(), conditioning_of=lambda tensors: Conditioning(tensors["prompt_embeds"]),
        shape=(call.batch, 4, call.height // 8, call.width // 8), timesteps=torch.tensor([500]),
    )  # fmt: skip
    rows = call.batch * (1 + call.guidance)
    run.condition_on({"prompt_embeds": torch.ones(rows, pipe.tokenizer.model_max_length, 128)})
    with torch.no_grad():
        x = torch.zeros(run.shape)
        run.predict(x, 0)
    return lambda: run.predict(x, 0)


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("backend", ["sdpa", "plain", "chunked"])
def test_a_step_is_traced_operation_by_operation(networks: dict[str, Any], backend: str, guidance: bool) -> None:
    pipe, call = open_demo(), CallSize(128, 256, 2, guidance)
    for unet in (pipe.unet, networks["unet"]):
        set_attention_backend(unet, backends.get(backend))
    real = real_ops(_second_step(pipe, call))
    assert sums(trace_stages(networks, call)["denoise"].ops) == sums(real)


@pytest.mark.parametrize("call", [CallSize(256, 256), CallSize(128, 384, 2), CallSize(256, 256, 1, guidance=False)])
def test_the_peak_is_what_torch_allocates(
    networks: dict[str, Any], call: CallSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1% and 300 KB, at sizes at which no convolution is left to torch's small kernels. Of a step, what is held
    all the while is not part of what it allocates: text, its keys and values, latents. Nor is what the C library keeps.
    """
    monkeypatch.setattr(stages, "HOLES", {})
    pipe = open_demo()
    z = torch.linspace(-1, 1, call.batch * call.height * call.width // 16).reshape(call.batch, 4, call.height // 8, -1)
    traced = trace_stages(networks, call)
    with torch.no_grad():
        decode(pipe.vae, z)
        assert traced["decode"].peak == pytest.approx(allocated_bytes(lambda: decode(pipe.vae, z)).peak, rel=0.01)
        step = _second_step(pipe, call)
        step()
        real = allocated_bytes(step).peak
    held = _held(pipe, call)
    assert traced["denoise"].peak - held == pytest.approx(real, rel=0.01, abs=3e5)


def _held(pipe: Any, call: CallSize) -> int:
    """Bytes of text, keys and values, and latents."""
    rows = call.batch * (1 + call.guidance)
    layers = [layer for name, layer in pipe.unet.named_modules() if name.endswith("attn2")]
    numbers = sum(layer.to_k.out_features + layer.to_v.out_features for layer in layers) + 128
    return 4 * (rows * pipe.tokenizer.model_max_length * numbers + 4 * call.batch * call.height * call.width // 16)


@pytest.mark.parametrize("family", list(families))
def test_every_family_has_its_stages(family: str) -> None:
    kind = families.get(family)
    networks = empty_networks(kind, torch.float16)
    assert {network.dtype for network in networks.values()} == {torch.float16}
    found = trace_stages(networks, CallSize(512, 512))
    assert list(found) == ["encode", "denoise", "decode"]
    half = trace_stages(networks, CallSize(512, 512, guidance=False))
    assert half["denoise"].flops < 0.6 * found["denoise"].flops
    assert all(stage.peak > 0 and stage.flops > 1e9 for stage in found.values())


def test_slices_and_strips_lower_the_peak(networks: dict[str, Any]) -> None:
    call = CallSize(512, 512, 4)
    whole = trace_stages(networks, call)["decode"].peak
    networks["vae"].enable_slicing()
    sliced = trace_stages(networks, call)["decode"].peak
    networks["vae"].enable_tiling()
    both = trace_stages(networks, call)["decode"].peak
    assert both < 0.8 * sliced
    assert sliced < 0.4 * whole


def test_slices_of_attention_lower_the_peak(networks: dict[str, Any]) -> None:
    call, peaks = CallSize(768, 768), []
    for kernel in (backends.get("plain"), Sliced(backends.get("plain"), "max")):
        set_attention_backend(networks["unet"], kernel)
        peaks.append(trace_stages(networks, call)["denoise"].peak)
    assert peaks[1] < 0.7 * peaks[0]


def test_a_distilled_network_is_run_once(networks: dict[str, Any]) -> None:
    kind = families.get("sd1").with_config("unet", time_cond_proj_dim=256)
    distilled = {"unet": empty_networks(kind)["unet"]}
    guided, plain = (trace_stages(distilled, CallSize(256, 256, 1, guidance)) for guidance in (True, False))
    assert guided == plain


def test_an_overflowing_vae_is_decoded_by_a_wider_copy() -> None:
    """SDXL's in float16: the copy of its decoder is part of what decoding takes."""
    peaks = {}
    for dtype in (torch.float16, torch.bfloat16):
        networks = empty_networks(families.get("sdxl"), dtype)
        peaks[dtype] = trace_stages(networks, CALL)["decode"].peak
    decoder = sum(weight.numel() for weight in networks["vae"].decoder.parameters())
    assert peaks[torch.float16] > 4 * decoder
    assert peaks[torch.bfloat16] < 4 * decoder


def test_dtypes_by_component() -> None:
    networks = empty_networks(model_folder(), {"vae": torch.float32, "default": torch.bfloat16})
    dtypes = {name: network.dtype for name, network in networks.items()}
    assert dtypes == {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}
    assert all(network.device.type == "meta" for network in networks.values())


def test_networks_of_other_kinds_are_refused(networks: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"unet is a Linear, .* expected a UNet2DConditionModel"):
        trace_stages(networks | {"unet": torch.nn.Linear(1, 1)}, CALL)
    with pytest.raises(ConfigError, match="vae is on cpu: expected a network without weights"):
        trace_stages({"vae": open_demo().vae}, CALL)


def test_the_less_is_given_back_the_more_holes_there_are(
    networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks below 4 MiB leave them in any case, and others on a CPU only."""
    call = CallSize(512, 512)

    found, elsewhere = (trace_stage("denoise", networks, call, device) for device in ("cpu", "cuda"))
    monkeypatch.setattr(stages, "HOLES", {})
    exact = trace_stage("denoise", networks, call).peak
    peaks = [found.peak_where(size) for size in (LARGE, MEDIUM, HIGHEST)]
    assert exact < peaks[0] < peaks[1] <= peaks[2] == found.peak_where(None) == found.peak <= 1.9 * exact
    exact = trace_stage("denoise", networks, call, "cuda").peak
    assert elsewhere.peak == elsewhere.peak_where(LARGE) == exact


def test_a_decode_in_strips_is_trimmed_before_it_takes_large_maps(
    networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the demo model no map is so large that trimming would matter where blocks below 32 MiB are kept."""
    networks["vae"].enable_tiling()
    found = trace_stage("decode", networks, CallSize(512, 512)).peaks
    monkeypatch.setattr(vae_tiles, "trim", lambda: None)
    without = trace_stage("decode", networks, CallSize(512, 512)).peaks
    assert found[LARGE] < 0.9 * without[LARGE]
    assert found[MEDIUM] < 0.9 * without[MEDIUM]


def test_what_is_not_there_has_no_stage(networks: dict[str, Any]) -> None:
    assert list(trace_stages({"unet": networks["unet"], "vae": None}, CALL)) == ["denoise"]
