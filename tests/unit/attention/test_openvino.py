"""Attention by OpenVINO: as exact as torch's, whatever the size of heads and scores, and only where it pays."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leandiffusion import StableDiffusionPipeline
from leandiffusion.attention import backends, openvino
from leandiffusion.attention.openvino import OpenVINO
from leandiffusion.attention.sliced import Sliced
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.device import openvino as engine
from leandiffusion.device.capabilities import EMULATED
from leandiffusion.modules.transformer import attention_layers
from leandiffusion.techniques import attention_backend

pytestmark = pytest.mark.skipif(
    bool(engine.why_no_openvino(torch.device("cpu"), torch.float32)), reason="OpenVINO does not compute here"
)
kernel = OpenVINO()


def inputs(B: int, nh: int, T: int, S: int, hs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v as the networks make them: views of (B, T, nh * hs)."""
    torch.manual_seed(0)
    return [torch.randn(B, length, nh * hs).to(dtype).view(B, -1, nh, hs).transpose(1, 2) for length in (T, S, S)]


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return float((out.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture
def every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "QUERIES", 1)
    monkeypatch.setattr(openvino, "KEYS", 1)


@pytest.mark.parametrize("largest", [4, 200, 2000])
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "head_size"),
    [(8, 300, 300, 40), (5, 257, 257, 64), (8, 128, 128, 80), (8, 64, 64, 160), (1, 100, 100, 512), (8, 256, 77, 40)],
)
def test_as_exact_as_torch(heads: int, queries: int, keys: int, head_size: int, largest: float) -> None:
    """Against float64, at scores up to `largest`. Both round each score to 2^-24 of itself, which the exponential turns
    into that much of a weight: within four times that, torch's kernel too."""
    q, k, v = inputs(2, heads, queries, keys, head_size)
    q = q * (largest / (q @ k.transpose(-1, -2)).abs().max() * head_size**0.5)
    rounding = 4 * largest * 2.0**-24
    for out in (kernel.compute(q, k, v), F.scaled_dot_product_attention(q, k, v)):
        assert error(out, q, k, v) <= max(rounding, 4e-6)


@pytest.mark.parametrize("largest", [1, 10, 40, 200])
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "head_size"),
    [(8, 300, 300, 40), (5, 257, 257, 64), (8, 128, 128, 80), (8, 64, 64, 160), (1, 100, 100, 512), (8, 256, 77, 40)],
)
def test_bfloat16_rounds_nothing_but_weights_and_result(
    heads: int, queries: int, keys: int, head_size: int, largest: float
) -> None:
    """Against float64 of the same inputs, at scores up to `largest`, which are not rounded: the softmax's weights are,
    to 2^-9 of themselves, and the result. Torch's kernel rounds as much; numpy has no bfloat16, so that it is read
    where it is."""
    if torch.bfloat16 in EMULATED:
        pytest.skip("no instructions for it")
    q, k, v = inputs(2, heads, queries, keys, head_size)
    q = q * (largest / (q @ k.transpose(-1, -2)).abs().max() * head_size**0.5)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    out = kernel.compute(q, k, v)
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert float((out.double() - expected).norm() / expected.norm()) <= 3e-3
    assert error(out, q, k, v) <= 2.0**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    if dtype in EMULATED:
        pytest.skip("no instructions for it")
    q, k, v = inputs(3, 2, 70, 65, 16, dtype)
    alone = [kernel.compute(*(x[i : i + 1] for x in (q, k, v))) for i in range(3)]
    assert torch.equal(kernel.compute(q, k, v), torch.cat(alone))


def test_the_result_lies_as_the_networks_read_it_on() -> None:
    q, k, v = inputs(2, 4, 64, 64, 16)
    assert kernel.compute(q, k, v).transpose(1, 2).is_contiguous()
    by_heads = [x[:, 1:3] for x in (q, k, v)]  # as sliced attention has it
    torch.testing.assert_close(kernel.compute(*by_heads), kernel.compute(q, k, v)[:, 1:3])


def test_several_threads_at_once() -> None:
    def one(length: int) -> float:
        q, k, v = inputs(1, 4, length, length, 40)
        return max(error(kernel.compute(q, k, v), q, k, v) for _ in range(5))

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(one, range(100, 108))) <= 4e-6


def test_it_follows_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    q, k, v = inputs(1, 2, 32, 32, 8)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            kernel.compute(q, k, v)
            model = openvino._compiled(32, 32, 2, 8, torch.float32, threads)
            assert model.get_property("INFERENCE_NUM_THREADS") == min(threads, os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.usefixtures("every_length")
def test_gradients_traces_and_other_dtypes_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenVINO computed would be a constant to autograd and to a trace."""
    monkeypatch.setattr(kernel, "compute", None)
    q, k, v = inputs(1, 2, 8, 8, 8)
    kernel(q.requires_grad_(), k, v).square().sum().backward()
    assert q.grad is not None
    traced = torch.jit.trace(lambda *qkv: kernel(*qkv), tuple(x.detach() for x in (q, k, v)), check_trace=False)
    assert "scaled_dot_product_attention" in str(traced.graph)
    kernel(*(x.detach().half() for x in (q, k, v)))
    kernel(*(x.detach().to("meta") for x in (q, k, v)))
    with pytest.raises(RuntimeError, match="same dtype"):
        kernel(q.detach(), k.double(), v.double())


@pytest.mark.parametrize(("queries", "keys", "theirs"), [(16, 8, True), (15, 16, False), (16, 7, False)])
def test_short_sequences_are_torchs(queries: int, keys: int, theirs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr(openvino, "QUERIES", 16)
    monkeypatch.setattr(openvino, "KEYS", 8)
    monkeypatch.setattr(kernel, "compute", lambda q, k, v: calls.append(q))
    kernel(*inputs(1, 1, queries, keys, 8))
    assert bool(calls) is theirs


@pytest.mark.usefixtures("every_length")
def test_a_pipeline_draws_the_same_with_it() -> None:
    """Within 1e-4 of a picture's range after two steps in float32."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    options = {"num_inference_steps": 2, "output_type": "np", "width": 64, "height": 64}

    def draw() -> Tensor:
        return torch.as_tensor(pipe("a red circle", generator=torch.Generator().manual_seed(1), **options).images)

    plain = draw()
    pipe.enable("attention_backend", backend="openvino")
    torch.testing.assert_close(draw(), plain, rtol=0, atol=1e-4)


def faster(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The packaged model, as if it were a large one on a CPU where the kernel is faster."""
    monkeypatch.setattr(openvino, "onednn_multiplies_faster", lambda: True)
    monkeypatch.setattr(attention_backend, "WORTH", 0)
    return StableDiffusionPipeline.from_pretrained("demo", dtype=dtype)


def draw_once(pipe: StableDiffusionPipeline) -> None:
    pipe("a red circle", num_inference_steps=1, width=64, height=64, output_type="latent")


def kernels_of(pipe: StableDiffusionPipeline) -> set[str]:
    return {layer.backend.name for network in (pipe.unet, pipe.vae) for _, layer in attention_layers(network)}


def test_it_is_on_by_default_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = faster(monkeypatch)
    draw_once(pipe)
    assert kernels_of(pipe) == {"openvino"}
    pipe.set_attention_backend("sdpa")
    draw_once(pipe)
    assert kernels_of(pipe) == {"sdpa"}
    pipe.disable("attention_backend")
    draw_once(pipe)
    assert kernels_of(pipe) == {"sdpa"}  # switched off by hand, it stays off
    with pytest.warns(UserWarning, match="xFormers runs on CUDA.* Using the kernel 'openvino'"):
        pipe.enable_xformers_memory_efficient_attention()
    assert kernels_of(pipe) == {"openvino"}


def test_slices_leave_the_fastest_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = faster(monkeypatch)
    pipe.enable_attention_slicing()
    draw_once(pipe)
    assert kernels_of(pipe) == {"openvino, sliced (auto)"}
    pipe.disable_attention_slicing()
    draw_once(pipe)
    assert kernels_of(pipe) == {"openvino"}


def test_what_somebody_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = faster(monkeypatch)
    pipe.unet.set_attention_backend("plain")
    draw_once(pipe)
    assert kernels_of(pipe) == {"plain", "sdpa"}


@pytest.mark.parametrize("why", ["not installed", "broken", "small", "other dtype", "level"])
def test_where_torchs_kernel_stays_the_default(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = faster(monkeypatch, torch.float16 if why == "other dtype" else torch.float32)
    if why == "not installed":
        monkeypatch.setattr(openvino, "is_installed", lambda: False)
    if why == "broken":
        monkeypatch.setattr(engine, "computes", lambda dtype: (_ for _ in ()).throw(OSError("no such library")))
    if why == "small":
        monkeypatch.setattr(attention_backend, "WORTH", 1 << 40)
    if why == "level":
        monkeypatch.setattr(openvino, "onednn_multiplies_faster", lambda: False)
    draw_once(pipe)
    assert kernels_of(pipe) <= {"sdpa", "flash"}


@pytest.mark.usefixtures("every_length")
def test_where_openvino_fails_torch_computes_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise RuntimeError(
            "Exception from src/inference/src/cpp/core.cpp:237:\nCheck 'a == b' failed at src/plugin.cpp:789:\n"
            "no kernel\n\n"
        )

    kernel, (q, k, v) = OpenVINO(), inputs(1, 2, 16, 16, 8)
    monkeypatch.setattr(openvino, "_compiled", fail)
    with pytest.warns(UserWarning, match=r"OpenVINO failed to compute attention \(no kernel\): torch's kernel"):
        first = kernel(q, k, v)
    second = kernel(q, k, v)
    assert torch.equal(first, backends.get("sdpa")(q, k, v))
    assert torch.equal(first, second)
    assert calls == [1]


@pytest.mark.usefixtures("every_length")
def test_what_only_torch_takes_is_no_failure() -> None:
    kernel, (q, k, v) = OpenVINO(), inputs(1, 2, 16, 16, 8)
    assert torch.equal(kernel(q, k, v[..., :5]), F.scaled_dot_product_attention(q, k, v[..., :5]))
    assert not kernel.failed


@pytest.mark.parametrize("size", ["auto", "max", 2])
@pytest.mark.parametrize(("heads", "tokens", "dtype"), [(8, 4096, 2), (8, 1024, 4), (20, 1024, 2), (1, 4096, 4)])
def test_its_heads_are_not_sliced(size: int | str, heads: int, tokens: int, dtype: int) -> None:
    whole = kernel.workspace_bytes(2, heads, tokens, tokens, dtype)
    assert Sliced(kernel, size).workspace_bytes(2, heads, tokens, tokens, dtype) == whole


@pytest.mark.usefixtures("every_length")
def test_memory_that_runs_out_is_no_failure_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    kernel = OpenVINO()
    monkeypatch.setattr(openvino, "_compiled", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        kernel(*inputs(1, 2, 16, 16, 8))
    assert not kernel.failed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.usefixtures("every_length")
def test_a_forked_child_computes_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's threads stay in the parent: the child would wait for them for ever."""
    q, k, v = inputs(1, 2, 8, 8, 8)
    kernel(q, k, v)
    monkeypatch.setattr(engine.os, "getpid", lambda: -1)
    monkeypatch.setattr(kernel, "compute", None)
    kernel(q, k, v)
    assert "threads do not survive a fork" in kernel.why_not(torch.device("cpu"), torch.float32)[0]


def test_what_it_says_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runs on cuda" in kernel.why_not(torch.device("cuda"), torch.float32)[0]
    assert "use float32" in kernel.why_not(torch.device("cpu"), torch.float16)[0]
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    with pytest.raises(BackendUnavailable, match=r"OpenVINO is not installed: pip install 'leandiffusion\[openvino\]'"):
        pipe.enable("attention_backend", backend="openvino")
