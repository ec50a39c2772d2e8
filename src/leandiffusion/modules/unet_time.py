"""What a UNet is told of the time, and in SDXL of pooled text and sizes: one vector, which every resnet adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from .blocks import TimestepEmbedding, sinusoid


@dataclass(frozen=True, eq=False)
class Waves:
    """Sinusoids (N, dim) in float32, which a UNet takes for the numbers that they are of: a timestep, or SDXL's sizes.

    For libraries that would compute the angles, up to 1000 radians, in the precision of the network.
    """

    values: Tensor


class TimeMixin(nn.Module):
    """Mixin of UNets: the embedding of time by the two networks that checkpoints name so."""

    config: Config
    time_embedding: TimestepEmbedding
    add_embedding: TimestepEmbedding | None

    def embed_time(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | Waves,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The embedding of time (and, in SDXL, of pooled text and sizes): (B, temb_channels), after SiLU."""
        waves = self.waves_of_time(timestep, sample.device).values.expand(sample.shape[0], -1)
        temb = self.time_embedding(waves.to(sample.dtype), timestep_cond)
        if self.add_embedding is not None:
            temb = temb + self.add_embedding(self._added_condition(added_cond_kwargs, temb.dtype))
        return F.silu(temb)  # the resnets' projections all start with this SiLU: done once

    def waves_of_time(self, timestep: Tensor | float | int | Waves, device: torch.device) -> Waves:
        """A scalar or (B,) -> (1, C) or (B, C), as wide as the network's first level; on that device."""
        if isinstance(timestep, Waves):
            return timestep
        numbers = torch.as_tensor(timestep, device=device).reshape(-1)
        return Waves(self._sinusoids(numbers, self.config.block_out_channels[0]))

    def waves_of_sizes(self, time_ids: Tensor | Waves) -> Waves:
        """SDXL's sizes (B, 6) -> (B, 6 * dim)."""
        if isinstance(time_ids, Waves):
            return time_ids
        waves = self._sinusoids(time_ids.flatten(), self.config.addition_time_embed_dim)
        return Waves(waves.reshape(len(time_ids), -1))

    def _added_condition(self, added: Mapping[str, Any] | None, dtype: torch.dtype) -> Tensor:
        """SDXL's pooled text and its sizes as sinusoids (Podell et al. 2023, sec. 2.2): (B, P + 6 * dim)."""
        missing = [key for key in ("text_embeds", "time_ids") if key not in (added or {})]
        if added is None or missing:
            raise ConfigError(f"addition_embed_type='text_time' needs added_cond_kwargs with {' and '.join(missing)}.")
        text, waves = added["text_embeds"], self.waves_of_sizes(added["time_ids"]).values
        return torch.cat([text, waves.to(text.dtype)], dim=-1).to(dtype)

    def _sinusoids(self, numbers: Tensor, dim: int) -> Tensor:
        """(N,) -> (N, dim) in float32, in the variant that the config names."""
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        return sinusoid(numbers, dim, flip_sin_to_cos=flip, freq_shift=shift)


def build_added_embedding(config: Config, temb_channels: int) -> TimestepEmbedding | None:
    """The network for pooled text and sizes; None where the config wants none. ConfigError for widths left out."""
    if config.addition_embed_type is None:
        return None
    in_channels = config.projection_class_embeddings_input_dim
    if in_channels is None or config.addition_time_embed_dim is None:
        raise ConfigError(
            "addition_embed_type='text_time' needs addition_time_embed_dim and "
            "projection_class_embeddings_input_dim (SDXL: 256 and 2816)."
        )
    return TimestepEmbedding(in_channels, temb_channels)
