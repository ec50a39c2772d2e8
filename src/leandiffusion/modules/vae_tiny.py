"""AutoencoderTiny: a small distilled autoencoder that decodes in a fraction of the time, with less detail.

The architecture is TAESD's (Ollin Boer Bohan 2023, https://github.com/madebyollin/taesd): convolutions alone, in
residual blocks of three. Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, TensorMismatch
from ..core.hub import local_path
from ..core.output import Output
from ..weights.header import TensorEntry, read_header
from ..weights.kinds import TINY_VAE, mistaken
from ..weights.residence import read_weights
from .base import Network, either_dtype
from .blocks import refuse_unsupported
from .convolution import Conv2d
from .features import absent
from .vae import DecoderOutput
from .vae_slices import SlicingMixin

_SUPPORTED = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "shift_factor": (None, 0, 0.0)}
_STRIPS = "a small decoder needs no strips: what it holds of a picture is 64 channels wide. Leave it out."


@dataclass(eq=False)
class AutoencoderTinyOutput(Output):
    """`latents`: (B, C, h, w)."""

    latents: Tensor


class AutoencoderTinyBlock(nn.Module):
    """Three 3x3 convolutions beside a shortcut, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = (layer for _ in range(2) for layer in (_conv(channels, channels), nn.ReLU()))
        self.conv = nn.Sequential(*inner, _conv(channels, channels))
        self.skip = nn.Identity()
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + self.skip(x))


def _conv(ins: int, outs: int, *, stride: int = 1, bias: bool = True) -> Conv2d:
    return Conv2d(ins, outs, stride=stride, bias=bias)


class EncoderTiny(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f)."""

    def __init__(self, ins: int, outs: int, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            layers.append(_conv(width, width, stride=2, bias=False) if level else _conv(ins, width))
            layers += [AutoencoderTinyBlock(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers, _conv(channels[-1], outs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.add(1).div(2))


class DecoderTiny(nn.Module):
    """Latents (B, C, h, w) -> pictures (B, 3, f * h, f * w), nominally in [-1, 1]."""

    def __init__(self, ins: int, outs: int, channels: Sequence[int], blocks: Sequence[int], factor: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(ins, channels[0]), nn.ReLU()]
        for level, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            is_last = level == len(channels) - 1
            layers += [AutoencoderTinyBlock(width) for _ in range(count)]
            layers += [] if is_last else [nn.Upsample(scale_factor=factor)]
            layers.append(_conv(width, outs if is_last else width, bias=is_last))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.tanh(x / 3) * 3).mul(2).sub(1)


class AutoencoderTiny(SlicingMixin, Network):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 4, H/8, W/8), which need no scale. Keywords are the keys of its
    config.json; `block_out_channels` says what `decoder_block_out_channels` does. ConfigError for values that are not
    supported, naming them.
    """

    _no_split_modules: ClassVar[list[str]] = ["AutoencoderTinyBlock"]

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1),
        latent_magnitude: int = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(self, _SUPPORTED, self.config)
        for part, channels, blocks in (
            ("encoder", encoder_block_out_channels, num_encoder_blocks),
            ("decoder", decoder_block_out_channels, num_decoder_blocks),
        ):
            if len(channels) != len(blocks) or len(set(channels)) > 1:
                raise ConfigError(
                    f"{part}_block_out_channels={list(channels)} and num_{part}_blocks={list(blocks)}: expected as "
                    "many of either, and one width for all levels."
                )
        self.encoder = EncoderTiny(in_channels, latent_channels, encoder_block_out_channels, num_encoder_blocks)
        self.decoder = DecoderTiny(
            latent_channels, out_channels, decoder_block_out_channels, num_decoder_blocks, upsampling_scaling_factor
        )
        self.register_to_config(block_out_channels=decoder_block_out_channels)
        self.use_slicing = False

    enable_tiling = absent(_STRIPS)

    def disable_tiling(self) -> None:
        """Nothing happens: there is no tiling here."""

    def scale_latents(self, x: Tensor) -> Tensor:
        """Latents -> [0, 1], as a picture could store them."""
        return x.div(2 * self.config.latent_magnitude).add(self.config.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """Undo `scale_latents`."""
        return x.sub(self.config.latent_shift).mul(2 * self.config.latent_magnitude)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f)."""
        latents = self._each(self.encoder, x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w) -> pictures (B, 3, f * h, f * w). `generator` is accepted for compatibility."""
        sample = self._each(self.decoder, x)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode, round latents to 8 bits, and decode: (B, 3, H, W) -> (B, 3, H, W)."""
        latents = self.scale_latents(self.encode(sample, return_dict=False)[0])
        rounded = latents.mul(255).round().to(torch.uint8)
        return self.decode(self.unscale_latents(rounded / 255.0).to(latents.dtype), return_dict=return_dict)

    def _each(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        read_weights([self])
        return self.each_alone(function, batch)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> Self:
        """Open one .safetensors file with diffusers' names. The shapes tell what it is made of; `settings` are config
        keys that win. TensorMismatch for a file without such a VAE."""
        from ..weights.load import fill_network

        file = local_path(pretrained_model_link_or_path_or_dict)
        told, entries = read_tiny_file(file)
        chosen = either_dtype(dtype, torch_dtype)
        return fill_network(
            cls, {**told, **settings}, entries, config_source=str(file), dtype=chosen, device=device, on_disk=True
        )


def read_tiny_file(path: Path) -> tuple[dict[str, Any], Mapping[str, TensorEntry]]:
    """The config that the file's shapes tell, and its tensors. TensorMismatch for a file without such a VAE."""
    entries = read_header(path).entries
    if not is_tiny(entries):
        raise TensorMismatch(
            mistaken(path, entries, TINY_VAE)
            or f"{path} holds no AutoencoderTiny: expected names such as encoder.layers.0.weight and "
            "decoder.layers.0.weight."
        )
    config: dict[str, Any] = {"latent_channels": entries["decoder.layers.0.weight"].shape[1]}
    for part in ("encoder", "decoder"):
        first, blocks = entries[f"{part}.layers.0.weight"], _blocks(part, entries)
        config |= {f"{part}_block_out_channels": [first.shape[0]] * len(blocks), f"num_{part}_blocks": blocks}
    return config, entries


def is_tiny(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are those of an AutoencoderTiny."""
    return {"encoder.layers.0.weight", "decoder.layers.0.weight"} <= set(names)


def _blocks(part: str, entries: Mapping[str, TensorEntry]) -> list[int]:
    """Blocks of each level: runs of them, which single convolutions separate."""
    kinds = {
        int(name.split(".")[2]): ".conv." in name for name in entries if name.startswith(f"{part}.layers.")
    }  # fmt: skip
    runs = [0]
    for _, is_block in sorted(kinds.items())[1:]:
        runs = [*runs[:-1], runs[-1] + 1] if is_block else [*runs, 0]
    return runs[:-1]
