"""What every attention backend promises. A new one is tested by being registered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from leandiffusion.attention import AttentionBackend, backends, kernels
from leandiffusion.core.errors import ConfigError

CPU = torch.device("cpu")
SHAPES = {  # batch, heads, queries, keys, head size
    "self": (2, 3, 20, 20, 8),
    "cross, with a text's 77 tokens": (2, 8, 64, 77, 40),
    "one head over all pixels, as in the VAE": (1, 1, 49, 49, 512),
    "one query": (3, 2, 1, 5, 16),
    "one key": (1, 4, 9, 1, 8),
}
# Against float64: the rounding of the inputs is common to both sides, so what is left is that of the arithmetic. In
# half precision scores or weights may be rounded to the dtype once (2^-11 and 2^-8), and the result is rounded to it.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def usable(name: str, dtype: torch.dtype = torch.float32) -> AttentionBackend:
    backend = backends.get(name)
    reasons = backend.why_not(CPU, dtype)
    if reasons:
        pytest.skip("; ".join(reasons))
    return backend


def inputs(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as the networks make them: views of (B, T, nh * hs) whose head axis is not the outer one."""
    B, nh, T, S, hs = shape
    torch.manual_seed(0)
    flat = [2 * torch.randn(B, length, nh * hs, dtype=dtype) for length in (T, S, S)]
    return [each.view(B, -1, nh, hs).transpose(1, 2) for each in flat]


def by_the_formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(hs)) v in float64, through a softmax written out."""
    q, k, v = q.double(), k.double(), v.double()
    weights = torch.exp(torch.einsum("bhtc,bhsc->bhts", q, k) / q.shape[-1] ** 0.5)
    return torch.einsum("bhts,bhsc->bhtc", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", backends.names())
def test_the_formula(name: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    q, k, v = inputs(shape, dtype)
    before = [each.clone() for each in (q, k, v)]
    out = usable(name, dtype)(q, k, v)
    assert (out.shape, out.dtype) == (q.shape, dtype)
    expected = by_the_formula(q, k, v)
    assert (out.double() - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), before, strict=True)), "inputs are left alone"


@pytest.mark.parametrize("name", backends.names())
def test_as_torch_does(name: str) -> None:
    """Within 1e-5 relative in float32: the same algebra, summed in another order."""
    q, k, v = inputs((2, 4, 33, 77, 40), torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(usable(name)(q, k, v), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", backends.names())
def test_large_scores_do_not_overflow(name: str) -> None:
    """exp(1000) is infinite in float32; a softmax that takes the maximum off first never forms it."""
    q = torch.full((1, 1, 4, 16), 50.0)
    k = torch.cat([torch.full((1, 1, 1, 16), 50.0), torch.zeros(1, 1, 3, 16)], dim=2)
    v = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 16).contiguous()  # as the networks make it
    torch.testing.assert_close(usable(name)(q, k, v), torch.zeros(1, 1, 4, 16))


@pytest.mark.parametrize("name", backends.names())
def test_gradients_flow(name: str) -> None:
    """As the formula's, within 1e-4 relative: one more product in float32."""
    leaves = [each.detach().requires_grad_() for each in inputs((1, 2, 6, 7, 8), torch.float32)]
    expected = torch.autograd.grad(by_the_formula(*leaves).square().sum(), leaves)
    got = torch.autograd.grad(usable(name)(*leaves).square().sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("name", backends.names())
def test_what_it_says_of_itself(name: str) -> None:
    backend = backends.get(name)
    assert backend.name == name
    reasons = backend.why_not(CPU, torch.float32)
    assert isinstance(reasons, list)
    assert all(isinstance(reason, str) and reason for reason in reasons)
    small = backend.workspace_bytes(1, 8, 64, 77, 2)
    assert isinstance(small, int)
    assert 0 <= small <= backend.workspace_bytes(2, 8, 128, 154, 4)


def test_only_the_plain_one_keeps_all_scores() -> None:
    """At 64x64 latents and 8 heads the scores are 256 MiB in float16, which is why the other one is the default."""
    plain = backends.get("plain").workspace_bytes(1, 8, 4096, 4096, 2)
    assert plain >= 2**28
    assert backends.get("sdpa").workspace_bytes(1, 8, 4096, 4096, 2) < plain / 100


def test_names() -> None:
    assert {"plain", "sdpa"} <= set(backends.names())
    with pytest.raises(ConfigError, match=r"unknown attention backend 'sdap'\. Did you mean 'sdpa'"):
        backends.get("sdap")


@pytest.mark.parametrize(("width", "kernel"), [(256, "FLASH_ATTENTION"), (512, "EFFICIENT_ATTENTION")])
def test_flash_on_gpus_leaves_wide_heads_to_another(width: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention-2 ends at 256 channels a head; the VAE of every family has one of 512."""
    chosen: list[str] = []

    def choose(backend: SDPBackend) -> AbstractContextManager[None]:
        chosen.append(backend.name)
        return nullcontext()

    monkeypatch.setattr(kernels, "sdpa_kernel", choose)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: v)
    q = torch.empty(1, 1, 4, width, device="meta")  # no GPU is needed to choose for one
    backends.get("flash")(q, q, q)
    assert chosen == [kernel]


def test_flash_on_the_cpu_changes_nothing_for_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "sdpa_kernel", None)
    q, k, v = inputs((1, 2, 9, 9, 8), torch.float32)
    torch.testing.assert_close(backends.get("flash")(q, k, v), F.scaled_dot_product_attention(q, k, v))
