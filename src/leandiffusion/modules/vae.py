"""AutoencoderKL: the variational autoencoder between pictures and latents (Rombach et al. 2022; Kingma & Welling 2013).

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.hub import local_path
from ..core.malloc import LARGE, MEDIUM, freed_at_once
from ..core.output import Output
from ..weights.residence import read_weights
from .base import Network, either_dtype
from .blocks import refuse_unsupported
from .convolution import Conv2d
from .features import AttentionFeatures, absent
from .vae_blocks import Decoder, Encoder
from .vae_slices import SlicingMixin
from .vae_tiles import check_tile_rows, decode_tiled, encode_tiled

_SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# Attention layer names before diffusers 0.12 -> since.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiagonalGaussianDistribution:
    """The encoder's output: a Gaussian with independent components.

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


@contextmanager
def _strips(vae: AutoencoderKL) -> Iterator[None]:
    before, vae.use_tiling = vae.use_tiling, True
    try:
        yield
    finally:
        vae.use_tiling = before


class AutoencoderKL(SlicingMixin, AttentionFeatures, Network):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 4, H/8, W/8). Keywords are the keys of the VAE's config.json.

    Latents in the diffusion process are these latents times `config.scaling_factor`. ConfigError for block types or
    values that are not supported, naming them.
    """

    repeated_blocks = _repeated_blocks = ("ResnetBlock2D",)
    _no_split_modules: ClassVar[list[str]] = ["ResnetBlock2D", "AttentionBlock"]

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
        self.quant_conv = Conv2d(2 * latent_channels, 2 * latent_channels, 1, padding=0) if use_quant_conv else None
        self.post_quant_conv = Conv2d(latent_channels, latent_channels, 1, padding=0) if use_post_quant_conv else None
        self.use_slicing = False
        self.use_tiling = False
        self.tile_rows: int | None = None

    def enable_tiling(self, use_tiling: bool = True, *, rows: int | None = None) -> None:
        """Decode and encode in strips of `rows` rows of the picture, chosen by its size unless given: 8 or more.

        Same result within rounding, without gradients, in a fraction of the memory. ConfigError for wrong `rows`.
        """
        check_tile_rows(rows)
        self.use_tiling, self.tile_rows = use_tiling, rows

    def disable_tiling(self) -> None:
        """Undo `enable_tiling`."""
        self.enable_tiling(False)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Picture (B, 3, H, W) in [-1, 1] -> distribution of latents (B, C, H/f, W/f), unscaled."""
        moments = self._each(self._encode, x)
        distribution = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w), unscaled -> picture (B, 3, f*h, f*w). `generator` is accepted for compatibility."""
        sample = self._each(self._decode, z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def tiled_encode(self, x: Tensor) -> Tensor:
        """Picture (B, 3, H, W) -> mean and log-variance of its latents (B, 2C, h, w), in strips, with or without
        `enable_tiling`."""
        with _strips(self):
            return self._each(self._encode, x)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` in strips, with or without `enable_tiling`."""
        with _strips(self):
            return self.decode(z, return_dict=return_dict)

    blend_h = blend_v = absent("strips do not overlap here, so there are no seams to blend: use enable_tiling().")

    def _encode(self, x: Tensor) -> Tensor:
        moments = encode_tiled(self.encoder, x, self.tile_rows) if self.use_tiling else self.encoder(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode(self, z: Tensor) -> Tensor:
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return decode_tiled(self.decoder, z, self.tile_rows) if self.use_tiling else self.decoder(z)

    def _each(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """`function` of the batch (B, …), with no more memory than asked for."""
        read_weights([self])
        if not (self.use_slicing or self.use_tiling):
            return function(batch)
        # Strips are some MiB each and many: memory for them is not asked for anew, and maps are larger.
        with freed_at_once(MEDIUM if self.use_tiling else LARGE):
            return self.each_alone(function, batch)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode: (B, 3, H, W) -> (B, 3, H, W), through a sample or the mode of the latents."""
        distribution = self.encode(sample, return_dict=False)[0]
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(z, return_dict=return_dict)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        config: str | Path | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Open a VAE from one .safetensors file: alone or in a whole checkpoint, in the original or diffusers' layout.

        The shapes tell what it is made of. `settings` are config keys that win, such as `scaling_factor=0.13025` for
        an SDXL VAE that lies alone: without it the scale is 0.18215, that of SD1 and SD2. `config` is a local folder
        with a config.json, or its settings. `dtype` as in `from_pretrained`.

        Raises TensorMismatch for a file without a VAE, ConfigError for unknown settings, and what is wrong with files.
        """
        from ..weights.load import fill_network, read_config
        from .vae_file import read_vae_file

        file = local_path(pretrained_model_link_or_path_or_dict)
        told, entries = read_vae_file(cls, file)
        given = read_config(local_path(config)) if isinstance(config, str | Path) else dict(config or {})
        settled = {**told, **given, **settings}
        chosen = either_dtype(dtype, torch_dtype)
        return fill_network(cls, settled, entries, config_source=str(file), dtype=chosen, device=device, on_disk=True)

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
