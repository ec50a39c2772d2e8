"""The VAE in strips and in slices gives what it gives as a whole, in a fraction of the memory."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from leandiffusion import AutoencoderKL, ConfigError
from leandiffusion.modules import vae_tiles
from leandiffusion.modules.blocks import GroupNorm
from leandiffusion.modules.vae_tiles import InMemory, Tiler

# Relative to the largest value. It is the whole decode that is inexact: torch's group norm takes a variance as the mean
# of squares less the square of the mean, and is off by up to 3e-5 from float64 here, where strips are by 2e-6.
EXACT = 5e-5


def make(channels: tuple[int, ...] = (8, 16, 16, 16), **config: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    n = len(channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=channels, norm_num_groups=4, **config,
    ).eval()  # fmt: skip
    for p in vae.parameters():
        if p.dim() == 1:  # norms that do something
            p.data += 0.3 * torch.randn_like(p)
    return vae.requires_grad_(False)


VAE = make()


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float = EXACT) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.fixture
def vae() -> AutoencoderKL:
    return copy.deepcopy(VAE)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), h=st.integers(1, 12), w=st.integers(1, 12),
    rows=st.one_of(st.none(), st.integers(8, 120)), slicing=st.booleans(),
)  # fmt: skip
def test_strips_of_any_height(batch: int, h: int, w: int, rows: int | None, slicing: bool) -> None:
    vae = copy.deepcopy(VAE)
    torch.manual_seed(0)  # a failure is one of this shape, and comes again
    z, x = torch.randn(batch, 4, h, w), torch.randn(batch, 3, 8 * h + h % 8, 8 * w + w % 5)
    decoded, encoded = vae.decode(z).sample, vae.encode(x).latent_dist.mean
    vae.enable_tiling(rows=rows)
    vae.use_slicing = slicing
    assert near(vae.decode(z).sample, decoded)
    assert near(vae.encode(x).latent_dist.mean, encoded)


@pytest.mark.parametrize(
    "config",
    [
        {"mid_block_add_attention": False},
        {"use_post_quant_conv": False, "use_quant_conv": False},
        {"layers_per_block": 2, "latent_channels": 7},
        {"channels": (8,)},
        {"channels": (16, 8)},
    ],
)
def test_other_architectures(config: dict[str, Any]) -> None:
    vae = make(**config)
    z = torch.randn(2, vae.config.latent_channels, 9, 5)
    x = torch.randn(1, 3, 40, 24)
    decoded, encoded = vae.decode(z).sample, vae.encode(x).latent_dist.mean
    vae.enable_tiling(rows=8)
    assert near(vae.decode(z).sample, decoded)
    assert near(vae.encode(x).latent_dist.mean, encoded)


def test_off_again_is_bit_for_bit_as_before(vae: AutoencoderKL) -> None:
    z = torch.randn(3, 4, 8, 8)
    before = vae.decode(z).sample
    vae.enable_tiling()
    vae.enable_slicing()
    vae.decode(z)
    vae.disable_tiling()
    vae.disable_slicing()
    assert torch.equal(vae.decode(z).sample, before)


def test_slices_are_what_each_picture_gives_alone(vae: AutoencoderKL) -> None:
    z = torch.randn(3, 4, 6, 5)
    alone = torch.cat([vae.decode(each[None]).sample for each in z])
    vae.enable_slicing()
    assert torch.equal(vae.decode(z).sample, alone)


def test_channels_last_stays_so(vae: AutoencoderKL) -> None:
    z = torch.randn(1, 4, 8, 8)
    expected = vae.decode(z).sample
    vae.to(memory_format=torch.channels_last)
    vae.enable_tiling(rows=16)
    orders: list[bool] = []
    vae.decoder.up_blocks[3].resnets[0].conv2.register_forward_pre_hook(
        lambda m, args: orders.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    assert near(vae.decode(z.to(memory_format=torch.channels_last)).sample, expected)
    assert all(orders)


def test_half_precision_keeps_its_statistics_in_float32() -> None:
    """bfloat16 has 8 bits: strips may differ from the whole by a few of its steps, not by more."""
    vae = make().bfloat16()
    z = torch.randn(1, 4, 8, 8).bfloat16()
    expected = vae.decode(z).sample
    vae.enable_tiling(rows=16)
    assert near(vae.decode(z).sample.float(), expected.float(), 0.05)


def test_statistics_of_a_map_far_from_zero() -> None:
    x = torch.randn(2, 8, 50, 7) * 0.01 + 1000
    found = Tiler(0.1, 4).statistics(InMemory(x), 4)
    exact = x.double().reshape(2, 4, -1)
    torch.testing.assert_close(found.mean.double(), exact.mean(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        found.var.double(), exact.var(-1, correction=0), rtol=0.02, atol=0
    )  # x itself is rounded


def test_a_norm_told_its_statistics() -> None:
    norm, x = GroupNorm(4, 8), torch.randn(2, 8, 12, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    statistics = Tiler(0.3, 4).statistics(InMemory(x), 4)
    torch.testing.assert_close(norm(x[:, :, 3:7], statistics), norm(x)[:, :, 3:7], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 7, -8, 8.0, True, "16"])
def test_wrong_rows(vae: AutoencoderKL, rows: Any) -> None:
    with pytest.raises(ConfigError, match="a strip is a whole number of rows"):
        vae.enable_tiling(rows=rows)
    assert not vae.use_tiling


def test_weights_are_reached_through_their_layers_alone(vae: AutoencoderKL) -> None:
    """So that they may come from elsewhere just in time: outside its layer's call every weight is wrong here."""
    z, x = torch.randn(1, 4, 6, 6), torch.randn(1, 3, 48, 48)
    decoded, encoded = vae.decode(z).sample, vae.encode(x).latent_dist.mean
    for layer in [m for m in vae.modules() if next(m.children(), None) is None]:
        right = {name: p.data for name, p in layer.named_parameters()}

        def show(m: nn.Module, *_: Any, right: dict[str, torch.Tensor] = right) -> None:
            for name, p in m.named_parameters():
                p.data = right[name]

        def hide(m: nn.Module, *_: Any, right: dict[str, torch.Tensor] = right) -> None:
            for name, p in m.named_parameters():
                p.data = torch.full_like(right[name], torch.nan)

        hide(layer)
        layer.register_forward_pre_hook(show)
        layer.register_forward_hook(hide)
    vae.enable_tiling(rows=16)
    assert near(vae.decode(z).sample, decoded)
    assert near(vae.encode(x).latent_dist.mean, encoded)


class Live(TorchDispatchMode):
    """Most bytes that tensors made inside held at one time, each memory counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


def peak(vae: AutoencoderKL, z: torch.Tensor) -> int:
    gc.collect()
    with Live() as live:
        vae.decode(z)
    return live.peak


def test_strips_take_a_fraction_of_the_memory() -> None:
    vae, z = make((16, 32, 32, 32)), torch.randn(1, 4, 32, 32)
    whole = peak(vae, z)
    vae.enable_tiling(rows=16)
    maps = 2 * 16 * 256 * 256 * 4  # two of the last level
    assert peak(vae, z) < 1.5 * maps
    assert peak(vae, z) <= 0.6 * whole  # without what the convolution library copies, which this does not see


def test_a_sliced_batch_takes_one_picture_and_the_result() -> None:
    vae = make()
    one = peak(vae, torch.randn(1, 4, 8, 8))
    vae.enable_slicing()
    result = 32 * 3 * 64 * 64 * 4
    assert peak(vae, torch.randn(32, 4, 8, 8)) <= 1.1 * (one + result)


def test_no_strip_is_larger_than_said_however_narrow_the_result(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last convolution goes from many channels to three: strips are as high as what it reads allows."""
    least = vae_tiles.MIN_ROWS * 128 * 16 * 4  # of the widest map at full size: strips are no lower than that
    monkeypatch.setattr(vae_tiles, "STRIP_BYTES", least)
    z, x = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 128, 128)
    decoded, encoded = vae.decode(z).sample, vae.encode(x).latent_dist.mean
    vae.enable_tiling()
    sizes: list[int] = []
    whole = {*vae.decoder.mid_block.modules(), *vae.encoder.mid_block.modules(), vae.encoder.conv_in}  # type: ignore[union-attr]
    for conv in [m for m in vae.modules() if isinstance(m, nn.Conv2d) and m not in whole]:
        conv.register_forward_pre_hook(lambda m, args: sizes.append(args[0].nbytes))
    assert near(vae.decode(z).sample, decoded)
    assert near(vae.encode(x).latent_dist.mean, encoded)
    assert max(sizes) <= 2 * least  # with the rows beyond its borders, and the stride's
