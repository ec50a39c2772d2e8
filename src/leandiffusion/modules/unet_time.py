"""What a UNet is told of the time, and in SDXL of pooled text and sizes: one vector, which every resnet adds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from .blocks import TimestepEmbedding, sinusoid


class TimeMixin(nn.Module):
    """Mixin of UNets: the embedding of time by the two networks that checkpoints name so."""

    config: Config
    time_embedding: TimestepEmbedding
    add_embedding: TimestepEmbedding | None

    def embed_time(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The embedding of time (and, in SDXL, of pooled text and sizes): (B, temb_channels), after SiLU."""
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        frequencies = self._waves(timesteps, self.config.block_out_channels[0])
        temb = self.time_embedding(frequencies.to(sample.dtype), timestep_cond)
        if self.add_embedding is not None:
            temb = temb + self.add_embedding(self._added_condition(added_cond_kwargs, temb.dtype))
        return F.silu(temb)  # the resnets' projections all start with this SiLU: done once

    def _added_condition(self, added: Mapping[str, Tensor] | None, dtype: torch.dtype) -> Tensor:
        """SDXL's pooled text and its sizes as sinusoids (Podell et al. 2023, sec. 2.2): (B, P + 6 * dim)."""
        missing = [key for key in ("text_embeds", "time_ids") if key not in (added or {})]
        if added is None or missing:
            raise ConfigError(f"addition_embed_type='text_time' needs added_cond_kwargs with {' and '.join(missing)}.")
        text, sizes = added["text_embeds"], added["time_ids"]
        waves = self._waves(sizes.flatten(), self.config.addition_time_embed_dim).reshape(len(sizes), -1)
        return torch.cat([text, waves.to(text.dtype)], dim=-1).to(dtype)

    def _waves(self, numbers: Tensor, dim: int) -> Tensor:
        """(N,) -> their sinusoids (N, dim) in float32, in the variant that the config names."""
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
