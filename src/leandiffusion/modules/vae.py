"""AutoencoderKL: the variational autoencoder between pictures and latents (Rombach et al. 2022; Kingma & Welling 2013).

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.output import Output
from .base import Network
from .blocks import Downsample2D, ResnetBlock2D, Upsample2D, refuse_unsupported, silu
from .transformer import Attention

_EPS = 1e-6  # of every norm in the VAE
_SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# Attention layer names before diffusers 0.12 -> since.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class AttentionBlock(Attention):
    """Self-attention of one head over all pixels, behind a group norm, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        return super().forward(tokens).reshape(B, H, W, C).permute(0, 3, 1, 2) + x


class MidBlock(nn.Module):
    """resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, None, groups, _EPS) for _ in range(2))
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class EncoderBlock(nn.Module):
    """Resnets, then halving of the resolution except in the last block."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, None, groups, _EPS)
            for i in range(layers)
        )
        if not last:
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2), or (B, C_out, H, W) in the last block."""
        for layer in (*self.resnets, *getattr(self, "downsamplers", ())):
            x = layer(x)
        return x


class DecoderBlock(nn.Module):
    """Resnets, then doubling of the resolution except in the last block."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, None, groups, _EPS)
            for i in range(layers)
        )
        if not last:
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W), or (B, C_out, H, W) in the last block."""
        for layer in (*self.resnets, *getattr(self, "upsamplers", ())):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) in [-1, 1] -> mean and log-variance (B, 2 * latent_channels, H/f, W/f)."""

    def __init__(
        self, in_channels: int, latent_channels: int, channels: Sequence[int], layers: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        ins = [channels[0], *channels[:-1]]
        self.down_blocks = nn.ModuleList(
            EncoderBlock(c_in, c_out, layers, groups, last=i == len(channels) - 1)
            for i, (c_in, c_out) in enumerate(zip(ins, channels, strict=True))
        )
        self.mid_block = MidBlock(channels[-1], groups, attention=attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> picture (B, out_channels, f*h, f*w)."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        channels = list(reversed(channels))
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, attention=attention)
        ins = [channels[0], *channels[:-1]]
        self.up_blocks = nn.ModuleList(
            DecoderBlock(c_in, c_out, layers + 1, groups, last=i == len(channels) - 1)
            for i, (c_in, c_out) in enumerate(zip(ins, channels, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(silu(self.conv_norm_out(h)))


class DiagonalGaussianDistribution:
    """The encoder's answer: a Gaussian with independent components.

    `parameters` is (B, 2C, h, w): mean, then log-variance, which is held to [-30, 20] so that exp stays finite.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (B, C, h, w); noise comes from the generator's device, as it does in the pipelines."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most likely latents: the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over components: (B,)."""
        return 0.5 * torch.sum(self.mean.square() + self.var - 1.0 - self.logvar, dim=(1, 2, 3))


@dataclass(eq=False)
class AutoencoderKLOutput(Output):
    """`latent_dist`: distribution of the latents."""

    latent_dist: DiagonalGaussianDistribution


@dataclass(eq=False)
class DecoderOutput(Output):
    """`sample`: picture (B, C, H, W), nominally in [-1, 1]."""

    sample: Tensor


class AutoencoderKL(Network):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 4, H/8, W/8). Keywords are the keys of the VAE's config.json.

    Latents in the diffusion process are these latents times `config.scaling_factor`. ConfigError for block types or
    values that are not supported, naming them.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        refuse_unsupported(self, _SUPPORTED, self.config)
        for key, supported in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            types = self.config[key]
            if list(types) != [supported] * len(block_out_channels):
                raise ConfigError(
                    f"AutoencoderKL does not support {key}={list(types)!r}: expected {supported!r} for each of the "
                    f"{len(block_out_channels)} entries of block_out_channels."
                )
        shared = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, latent_channels, *shared)
        self.decoder = Decoder(latent_channels, out_channels, *shared)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Picture (B, 3, H, W) in [-1, 1] -> distribution of latents (B, C, H/f, W/f), unscaled."""
        if self.encoder is None:
            raise ConfigError(
                "this AutoencoderKL was opened without its encoder, which text-to-image does not need: open it with "
                "AutoencoderKL.from_pretrained(…, subfolder='vae') to encode pictures."
            )
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        distribution = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w), unscaled -> picture (B, 3, f*h, f*w). `generator` is accepted for compatibility."""
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode: (B, 3, H, W) -> (B, 3, H, W), through a draw or the mode of the latents."""
        distribution = self.encode(sample, return_dict=False)[0]
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(z, return_dict=return_dict)

    @classmethod
    def rename_keys(cls, keys: list[str]) -> dict[str, str]:
        """Names in checkpoints written before diffusers 0.12 -> ours."""
        renamed = {key: key for key in keys}
        for key in keys:
            head, _, last = key.rpartition(".")
            stem, _, layer = head.rpartition(".")
            if ".attentions." in key and layer in _OLD_ATTENTION:
                renamed[key] = f"{stem}.{_OLD_ATTENTION[layer]}.{last}"
        return renamed
