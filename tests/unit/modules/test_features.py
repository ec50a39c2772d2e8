"""Switches of a network: processors and kernels of attention, checkpoints of gradients, sizes, and what is not here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leandiffusion import AutoencoderKL, UNet2DConditionModel
from leandiffusion.attention import backends
from leandiffusion.core.errors import ConfigError, NotSupported
from leandiffusion.modules.blocks import GradientCheckpointing

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12, "attention_head_dim": 2,
    "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval()


@pytest.fixture(params=[(UNet2DConditionModel, UNET), (AutoencoderKL, VAE)], ids=["unet", "vae"])
def network(request: pytest.FixtureRequest) -> UNet2DConditionModel | AutoencoderKL:
    cls, config = request.param
    torch.manual_seed(0)
    return cls(**config).eval()


def run(network: nn.Module, **others: Any) -> Tensor:
    torch.manual_seed(1)
    if isinstance(network, AutoencoderKL):
        return network(torch.randn(1, 3, 8, 8), return_dict=False)[0]
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    return network(x, torch.tensor([7, 900]), text, return_dict=False, **others)[0]


class Scaled(nn.Module):
    """A processor with a weight and an argument of its own, written for diffusers' layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.numbers: list[int | None] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        number: int | None = None,
    ) -> Tensor:
        self.numbers.append(number)
        B, T, _ = hidden_states.shape
        mask = attn.prepare_attention_mask(attention_mask, T, B)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        out = attn.batch_to_head_dim(attn.get_attention_scores(q, k, mask) @ v)
        return attn.to_out[1](attn.to_out[0](out)) * self.gain


@torch.no_grad()
def test_a_processor_of_ones_own(unet: UNet2DConditionModel) -> None:
    """Rounding apart (1e-5 of numbers of the order of 1): it writes out what torch's kernel computes."""
    plain, processor, names = run(unet), Scaled(), list(unet.attn_processors)
    assert all(name.endswith(".processor") for name in names)
    unet.set_attn_processor(processor)
    assert unet.attn_processors == dict.fromkeys(names, processor)
    torch.testing.assert_close(run(unet, cross_attention_kwargs={"number": 3}), plain, rtol=1e-5, atol=1e-5)
    assert processor.numbers == [3] * len(names)
    assert sum(name.endswith(".gain") for name in unet.state_dict()) == len(names), "its weight is the network's too"
    processor.gain.fill_(0.5)
    assert not torch.allclose(run(unet), plain, atol=1e-3)
    unet.set_attn_processor(unet.attn_processors)  # to itself
    unet.set_default_attn_processor()
    assert torch.equal(run(unet), plain)
    assert not any("processor" in name for name in unet.state_dict())


def test_arguments_that_no_processor_takes(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(Scaled())
    with pytest.raises(ConfigError, match=r"takes scale \(cross_attention_kwargs\).*set_attn_processor"):
        run(unet, cross_attention_kwargs={"number": 3, "scale": 1.0})


def test_processors_by_name(unet: UNet2DConditionModel) -> None:
    names = list(unet.attn_processors)
    one, other = Scaled(), Scaled()
    unet.set_attn_processor({name: other if i else one for i, name in enumerate(names)})
    assert list(unet.attn_processors.values()) == [one] + [other] * (len(names) - 1)
    with pytest.raises(ConfigError, match=r"number of processors \(1\) is not that of attention layers"):
        unet.set_attn_processor({names[0]: one})
    with pytest.raises(ConfigError, match=r"no attention layer 'x\.processor'"):
        unet.set_attn_processor(dict.fromkeys([*names[1:], "x.processor"], one))
    with pytest.raises(ConfigError, match="must be callable"):
        unet.set_attn_processor(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Scaled, a processor of your own, which cannot be cut.*set_default"):
        unet.set_attention_slice(1)
    assert next(iter(unet.attn_processors.values())) is one, "a refusal changes nothing"


@torch.no_grad()
def test_kernels_of_a_network(network: Any) -> None:
    """Another kernel rounds differently: 1e-5 of numbers of the order of 1."""
    plain = run(network)
    network.set_attention_backend("plain")
    assert {p.backend.name for p in network.attn_processors.values()} == {"plain"}
    torch.testing.assert_close(run(network), plain, rtol=1e-5, atol=1e-5)
    network.reset_attention_backend()
    assert torch.equal(run(network), plain)
    with pytest.warns(UserWarning, match="xFormers"):
        network.enable_xformers_memory_efficient_attention()
    torch.testing.assert_close(run(network), plain, rtol=1e-5, atol=1e-5)
    network.disable_xformers_memory_efficient_attention()
    with pytest.warns(UserWarning, match="xFormers"):
        network.set_use_memory_efficient_attention_xformers(True)
    network.set_use_memory_efficient_attention_xformers(False)
    assert {p.backend.name for p in network.attn_processors.values()} == {"sdpa"}
    with pytest.raises(ConfigError, match="sdpa"):
        network.set_attention_backend("sdap")


@torch.no_grad()
def test_text_that_is_masked_is_as_if_it_were_not_there(unet: UNet2DConditionModel) -> None:
    """Within rounding: 1e-5 of numbers of the order of 1."""
    torch.manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    for dtype in (torch.bool, torch.long, torch.float32):
        mask = (torch.arange(5) < 4).expand(2, 5).to(dtype)
        masked = unet(x, 7, text, encoder_attention_mask=mask).sample
        torch.testing.assert_close(masked, unet(x, 7, text[:, :4]).sample, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"shape \(2, 4\): expected \(2, 5\)"):
        unet(x, 7, text, encoder_attention_mask=mask[:, :4])


def test_checkpoints_of_gradients(network: Any) -> None:
    """The same gradients to the bit: what is computed again is what was computed."""
    calls: list[nn.Module] = []

    def gradients() -> list[Tensor]:
        network.zero_grad()
        run(network).square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    def counted(layer: nn.Module, *inputs: Any) -> Any:
        calls.append(layer)
        return torch.utils.checkpoint.checkpoint(layer, *inputs, use_reentrant=False)

    assert not network.is_gradient_checkpointing
    expected = gradients()
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    network.enable_gradient_checkpointing(counted)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    parts = {id(m) for part in network.modules() if isinstance(part, GradientCheckpointing) for m in part.modules()}
    assert len(calls) > 5
    assert all(id(layer) in parts for layer in calls)
    network.disable_gradient_checkpointing()
    calls.clear()
    gradients()
    assert not network.is_gradient_checkpointing
    assert not calls


def test_trains_as_any_module(network: Any) -> None:
    before = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.SGD(network.train().parameters(), lr=0.1)
    run(network).square().mean().backward()
    optimiser.step()
    assert all(p.grad is not None for name, p in network.named_parameters() if "encoder.conv_norm" not in name)
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_sizes(network: Any) -> None:
    assert network.get_memory_footprint() == 4 * network.num_parameters()
    network.register_buffer("extra", torch.zeros(10, dtype=torch.float16))
    assert network.get_memory_footprint() == 4 * network.num_parameters() + 20
    assert network.get_memory_footprint(return_buffers=False) == 4 * network.num_parameters()


def test_repeated_blocks_are_compiled(network: Any) -> None:
    network.compile_repeated_blocks(backend="eager")
    compiled = [type(m).__name__ for m in network.modules() if m._compiled_call_impl is not None]
    assert set(compiled) == set(network.repeated_blocks)


def test_settings_under_their_own_names(network: Any) -> None:
    network.register_to_config(note=5, sample_size=16)
    assert (network.config.note, network.config.sample_size) == (5, 16)
    with pytest.warns(FutureWarning, match=r"config\.sample_size"):
        assert network.sample_size == 16
    with pytest.raises(AttributeError, match=f"^'{type(network).__name__}' object has no attribute 'nothing'$"):
        _ = network.nothing


def test_strips_whatever_is_on() -> None:
    """The same within rounding: 1e-5 of numbers of the order of 1."""
    vae = AutoencoderKL(**VAE).eval()
    with torch.no_grad():
        z, x = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(vae.tiled_decode(z).sample, vae.decode(z).sample, rtol=1e-5, atol=1e-5)
        encoded = vae.encode(x).latent_dist.parameters
        torch.testing.assert_close(vae.tiled_encode(x), encoded, rtol=1e-5, atol=1e-5)
    assert not vae.use_tiling


ABSENT = [
    "add_adapter", "load_lora_adapter", "fuse_lora", "enable_group_offload", "enable_layerwise_casting", "push_to_hub",
    "dequantize", "enable_parallelism", "enable_npu_flash_attention", "set_use_xla_flash_attention",
]  # fmt: skip


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_here_says_so(network: Any, name: str) -> None:
    with pytest.raises(NotSupported) as raised:
        getattr(network, name)()
    assert isinstance(raised.value, ConfigError | NotImplementedError)
    assert len(str(raised.value)) < 500


def test_projections_stay_apart(network: Any) -> None:
    with torch.no_grad():
        plain = run(network)
        with pytest.warns(UserWarning, match="same result"):
            network.fuse_qkv_projections()
        assert torch.equal(run(network), plain)
        network.unfuse_qkv_projections()


def test_kernels_are_found_by_diffusers_name(network: Any) -> None:
    network.set_attention_backend("native")
    assert next(iter(network.attn_processors.values())).backend is backends.get("sdpa")
