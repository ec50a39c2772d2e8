"""Sliced attention: the kernel that is on, fewer heads at a time, on one layer and on whole networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leandiffusion import ConfigError, UNet2DConditionModel
from leandiffusion.attention import backends, choose
from leandiffusion.attention.choose import memory_efficient
from leandiffusion.attention.sliced import Sliced
from leandiffusion.modules.transformer import attention_layers, set_attention_backend, set_attention_slice

CPU = torch.device("cpu")
USABLE = [name for name in backends if not backends.get(name).why_not(CPU, torch.float32)]


class Recorder:
    """A kernel that notes how many heads it was given, and says that it keeps scores."""

    name = "recorder"

    def __init__(self) -> None:
        self.heads: list[int] = []

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.heads.append(q.shape[1])
        return backends.get("sdpa")(q, k, v)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return ["never"]

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 1000 * batch * heads * queries * keys * itemsize


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("size", "calls"), [("auto", [4, 3]), ("max", [1] * 7), (3, [3, 3, 1]), (7, [7]), (9, [7])])
@pytest.mark.parametrize("name", USABLE)
def test_each_slice_goes_to_the_kernel_that_is_on(name: str, size: Any, calls: list[int]) -> None:
    q, k = torch.randn(2, 7, 33, 8), torch.randn(2, 7, 10, 8)
    torch.testing.assert_close(Sliced(backends.get(name), size)(q, k, k), backends.get(name)(q, k, k))
    if size != "auto":
        recorder = Recorder()
        Sliced(recorder, size)(q, k, k)
        assert recorder.heads == calls


def test_half_the_heads_and_at_least_one() -> None:
    assert [Sliced(Recorder()).step(heads) for heads in (1, 2, 7, 8)] == [1, 1, 3, 4]


def test_what_it_says_of_itself() -> None:
    recorder = Recorder()
    sliced = Sliced(recorder, 2)
    assert sliced.why_not(CPU, torch.float32) == ["never"]
    assert sliced.workspace_bytes(1, 8, 5, 5, 4) == 2 * 1000 * 5 * 5 * 4
    assert sliced.workspace_bytes(1, 1, 5, 5, 4) == 1000 * 5 * 5 * 4
    assert "recorder" in sliced.name


class Frugal(Recorder):
    """A kernel that keeps no scores."""

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries


def test_heads_stay_together_where_slices_save_nothing() -> None:
    q, few = torch.randn(1, 4, 256, 8), torch.randn(1, 4, 8, 8)
    frugal = Frugal()
    assert torch.equal(Sliced(frugal, "max")(q, q, q), backends.get("sdpa")(q, q, q))
    assert frugal.heads == [4]
    plain = backends.get("plain")
    assert Sliced(plain, "max").workspace_bytes(1, 4, 256, 256, 4) == plain.workspace_bytes(1, 1, 256, 256, 4)
    assert torch.equal(Sliced(plain, "max")(few, few, few), plain(few, few, few))
    assert Sliced(plain, "max").workspace_bytes(1, 4, 8, 8, 4) == plain.workspace_bytes(1, 4, 8, 8, 4)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("size", "part"), [("auto", 2), ("max", 8), (4, 2), (1, 8)])
def test_the_scores_shrink(size: Any, part: int) -> None:
    q = torch.randn(1, 8, 256, 16)
    peaks = []
    for backend in (backends.get("plain"), Sliced(backends.get("plain"), size)):
        with Largest() as largest:
            backend(q, q, q)
        peaks.append(largest.bytes)
    assert peaks[0] == 8 * 256 * 256 * 4
    assert peaks[1] == peaks[0] // part


def test_chunks_of_queries_are_linear_in_memory() -> None:
    peaks = []
    for tokens in (1024, 2048):
        q, k = torch.randn(1, 2, tokens, 16), torch.randn(1, 2, 512, 16)
        with Largest() as largest:
            backends.get("chunked")(q, k, k)
        peaks.append(largest.bytes)
    assert peaks[0] == peaks[1] == 2 * 256 * 512 * 4


# -- networks --------------------------------------------------------------------------------------------------------


def run(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(2, 4, 8, 8, generator=generator), 3, torch.randn(2, 5, 32, generator=generator)).sample


@pytest.mark.parametrize("size", ["auto", "max", 1, 3, 4])
def test_a_sliced_network_gives_the_same(unet: UNet2DConditionModel, size: Any) -> None:
    expected = run(unet)
    unet.set_attention_slice(size)
    torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-5)
    unet.set_attention_slice(None)
    assert all(layer.backend is backends.get("sdpa") for _, layer in attention_layers(unet))
    assert torch.equal(run(unet), expected)


def test_slices_never_nest_and_keep_the_kernel(unet: UNet2DConditionModel) -> None:
    recorder = Recorder()
    set_attention_backend(unet, recorder)
    for size in ("auto", "max", 2):
        set_attention_slice(unet, size)
    assert all(layer.backend == Sliced(recorder, 2) for _, layer in attention_layers(unet))
    run(unet)
    assert recorder.heads
    assert set(recorder.heads) == {2}
    set_attention_backend(unet, backends.get("plain"))
    assert all(layer.backend == Sliced(backends.get("plain"), 2) for _, layer in attention_layers(unet))


def test_a_size_for_each_layer(unet: UNet2DConditionModel) -> None:
    layers = [layer for _, layer in attention_layers(unet)]
    sizes: list[Any] = [(1, 2, 3, 4)[i % 4] for i in range(len(layers))]
    unet.set_attention_slice(sizes)
    assert [layer.backend.heads_at_a_time for layer in layers] == sizes  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5, r"slice size 5 is more than the 4 heads of down_blocks\.0\.attentions\.0"),
        ([1] * 11 + [9], r"slice size 9 is more than the 4 heads of .*mid_block|slice size 9 is more"),
        (0, "none of 'auto', 'max' and whole numbers"),
        (-1, "none of"),
        (True, "none of"),
        (2.0, "none of"),
        ("half", "none of"),
        ([1, 2], "2 slice sizes for"),
    ],
)
def test_wrong_sizes_change_nothing(unet: UNet2DConditionModel, size: Any, message: str) -> None:
    if isinstance(size, list) and len(size) > 2:
        size = [1] * (len(list(attention_layers(unet))) - 1) + [9]
    with pytest.raises(ConfigError, match=message):
        unet.set_attention_slice(size)
    assert all(layer.backend is backends.get("sdpa") for _, layer in attention_layers(unet))


def test_without_xformers_torchs_own_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "is_faster", lambda device, dtype: False)
    backend, reason = memory_efficient(CPU, torch.float32)
    assert backend.name == "flash"
    assert reason is not None
    assert "xFormers runs on CUDA" in reason
    assert "'flash'" in reason
    assert "attention_op has no effect" in (memory_efficient(CPU, torch.float32, object())[1] or "")


@pytest.mark.parametrize("name", ["efficient", "xformers"])
def test_kernels_for_gpus_say_so(name: str) -> None:
    [reason] = backends.get(name).why_not(CPU, torch.float32)
    assert "CUDA" in reason
