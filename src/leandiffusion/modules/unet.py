"""UNet2DConditionModel: the text-conditioned denoiser of SD1, SD2 and SDXL (Rombach et al. 2022; Podell et al. 2023).

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.hub import local_path
from ..core.output import Output
from .base import Network, either_dtype, openers
from .blocks import GroupNorm, TimestepEmbedding, refuse_unsupported, repeat_rows, silu
from .convolution import Conv2d
from .deep import DeepFeature
from .features import ATTENTION_WEIGHTS, AttentionFeatures, absent
from .freeu import FreeUMixin
from .perturbed import Perturbed
from .processors import CustomProcessor, attention_layers, check_arguments
from .transformer import Attention, set_attention_slice
from .unet_blocks import SharedSettings
from .unet_inputs import check_residuals, refuse_unused, text_bias, with_residuals
from .unet_levels import SUPPORTED, build_down, build_middle, build_up, levels_of
from .unet_time import TimeMixin, Waves, build_added_embedding

PIECES = (
    "the UNet's forward is not split as in diffusers: embed_time(sample, timestep, …) gives the embedding of time and "
    "(in SDXL) of pooled text and sizes, and encoder_hidden_states are used as they are."
)

# Settings of diffusers' EMAModel, which saves them into the network's config.json.
_AVERAGING = frozenset(
    ["decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"]
)


@dataclass(eq=False)
class UNet2DConditionOutput(Output):
    """`sample`: the prediction (B, out_channels, h, w), what it predicts being the scheduler's `prediction_type`."""

    sample: Tensor


class UNet2DConditionModel(TimeMixin, FreeUMixin, AttentionFeatures, Network):
    """Noisy latents, timestep and text -> prediction. Keywords are the keys of the UNet's config.json.

    `attention_head_dim` is, for historic reasons, the *number* of heads, one for all levels or one per level.
    ConfigError for values and block types that are not supported, naming them.
    """

    repeated_blocks = _repeated_blocks = ("BasicTransformerBlock",)
    _no_split_modules: ClassVar[list[str]] = [
        "BasicTransformerBlock", "ResnetBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
    ]  # fmt: skip
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm"]

    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: Sequence[str] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | Sequence[int] = 1280,
        transformer_layers_per_block: int | Sequence[int | Sequence[int]] = 1,
        reverse_transformer_layers_per_block: Sequence[int | Sequence[int]] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | Sequence[int] = 8,
        num_attention_heads: int | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        refuse_unsupported(self, SUPPORTED, self.config)
        channels = list(block_out_channels)
        levels = levels_of(self.config)
        temb_channels = time_embedding_dim or 4 * channels[0]
        shared = SharedSettings(temb_channels, norm_num_groups, norm_eps, use_linear_projection, bool(upcast_attention))

        self.conv_in = Conv2d(in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(channels[0], temb_channels, time_cond_proj_dim)
        self.add_embedding = build_added_embedding(self.config, temb_channels)
        self.down_blocks, skip_channels = build_down(self.config, levels, shared)
        self.mid_block = build_middle(self.config, levels[-1], shared)
        self.up_blocks = build_up(self.config, levels, skip_channels, shared)
        self.conv_norm_out = GroupNorm(norm_num_groups, channels[0], eps=norm_eps)
        self.conv_out = Conv2d(channels[0], out_channels)

    @classmethod
    def _carry(cls, foreign: dict[str, Any]) -> dict[str, Any]:
        """What EMA training adds to the settings is kept in the config and changes nothing."""
        notes = {key: value for key, value in foreign.items() if key in _AVERAGING}
        return super()._carry({key: value for key, value in foreign.items() if key not in notes}) | notes

    @property
    def in_channels(self) -> int:
        """Channels of `sample`; what replaces `pipe.unet` in tracing scripts carries this attribute too."""
        return self.config.in_channels

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Compute attention so many heads at a time: 'auto' half, 'max' one, a number, one per layer; None all."""
        set_attention_slice(self, slice_size)

    load_attn_procs = save_attn_procs = absent(ATTENTION_WEIGHTS)
    get_time_embed = get_aug_embed = get_class_embed = process_encoder_hidden_states = absent(PIECES)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        config: str | Path | None = None,
    ) -> Self:
        """Open the UNet of one .safetensors file in the original layout: a whole checkpoint, or the UNet alone.

        `config` is a local folder with the UNet's config.json, or a pipeline's, in place of what its family has.
        `dtype` as in `from_pretrained`. Raises WeightsError's kinds for files without such a UNet.
        """
        file, folder = local_path(pretrained_model_link_or_path_or_dict), None if config is None else local_path(config)
        return openers.get("UNet2DConditionModel")(
            cls, file, config=folder, dtype=either_dtype(dtype, torch_dtype), device=device
        )

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | Waves,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        deep: DeepFeature | None = None,
        perturbed: Perturbed | None = None,
        images: Mapping[Attention, Sequence[tuple[float, Tensor, Tensor]]] | None = None,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict for noisy latents `sample` (B, in_channels, h, w) at `timestep` (scalar or (B,)).

        `encoder_hidden_states` (B, S, cross_attention_dim) is the encoded text, `encoder_attention_mask` (B, S) 1 for
        its tokens to attend to and 0 for those to mask. With several texts for each sample, as under classifier-free
        guidance, `sample` may have fewer rows and is repeated; what comes before the text is then computed once where
        it can be. SDXL wants `added_cond_kwargs` with `text_embeds` (B, P) and `time_ids` (B, 6). The
        `*_additional_residuals` are a ControlNet's, given together. `cross_attention_kwargs` are arguments of attention
        processors that were set. `deep` keeps deep features for the next forwards, or has those of an earlier one used.
        `perturbed` says which samples go without self-attention, and in which layers; `images` what layers attend to
        beside the text: weights, and keys and values (B, S', C) of pictures.

        ConfigError for inputs that this network does not use: class labels, masks of its self-attention, arguments that
        no processor takes, adapter residuals, and a `timestep_cond` or added conditions without a layer for them.
        """
        unused = {
            "class_labels": class_labels,
            "timestep_cond": timestep_cond if self.time_embedding.cond_proj is None else None,
            "attention_mask": attention_mask,
            "down_intrablock_additional_residuals": down_intrablock_additional_residuals,
        }
        refuse_unused(unused, added_cond_kwargs, () if self.add_embedding is None else ("text_embeds", "time_ids"))
        check_residuals(down_block_additional_residuals, mid_block_additional_residual, self.skip_count)
        if cross_attention_kwargs:
            check_arguments(self, cross_attention_kwargs)
        extra = {**(cross_attention_kwargs or {})}
        extra |= {name: each for name, each in {"perturbed": perturbed, "images": images}.items() if each is not None}
        text = encoder_hidden_states, text_bias(encoder_attention_mask, encoder_hidden_states), extra

        rows = max(len(sample), len(encoder_hidden_states))
        if len(sample) < rows and not self._may_share(timestep, perturbed):
            sample = repeat_rows(sample, rows)
        temb = self.embed_time(sample, timestep, timestep_cond, added_cond_kwargs)
        x, maps = self._down(sample, temb, text, deep)
        maps = with_residuals(maps, down_block_additional_residuals)
        maps.append(self._middle(x, temb, text, deep, mid_block_additional_residual))
        x = self._up(maps, temb, text, deep)
        x = self.conv_out(silu(self.conv_norm_out(x), self.conv_norm_out))
        x = repeat_rows(x, rows)  # a network that attends to no text
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)

    def _down(
        self, sample: Tensor, temb: Tensor, text: tuple[Any, ...], deep: DeepFeature | None
    ) -> tuple[Tensor, list[Tensor]]:
        """What comes out at the bottom, and the skip connections, the outermost first. With a deep feature that stands
        for the rest, only those outside of it."""
        wanted = self.skip_count if deep is None or deep.value is None else min(deep.depth, self.skip_count)
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            if len(skips) < wanted:
                short = {} if wanted == self.skip_count else {"count": wanted - len(skips)}
                x, made = block(x, temb, *text, **short)
                skips += made
                del made
        return x, skips

    def _middle(
        self, x: Tensor, temb: Tensor, text: tuple[Any, ...], deep: DeepFeature | None, residual: Tensor | None
    ) -> Tensor:
        """What the up path starts from: a deep feature if there is one, or what the middle makes of x."""
        if deep is not None and deep.value is not None:
            return deep.value
        x = x if self.mid_block is None else self.mid_block(x, temb, *text)
        return x if residual is None else repeat_rows(x, len(residual)) + residual

    def _up(self, maps: list[Tensor], temb: Tensor, text: tuple[Any, ...], deep: DeepFeature | None) -> Tensor:
        """The last of `maps`, joined by the others, the skip connections, from the last to the first.

        What is used leaves the list, which frees it.
        """
        left = self.skip_count
        for block in self.up_blocks:
            count: int = len(block.resnets)  # type: ignore[arg-type]
            left -= count
            if len(maps) - 1 <= left:  # lies deeper than what is computed anew
                continue
            own = maps[left:]
            del maps[left:]
            kept = {} if deep is None else {"deep": deep, "keep_at": count + left - deep.depth}
            # The next skip connection gives the size: it is odd where the down path rounded.
            size = maps[-1].shape[-2:] if maps else None
            maps.append(block(own, temb, text[0], size, *text[1:], **kept))
        return maps.pop()

    @property
    def skip_count(self) -> int:
        """Skip connections, each taken by one resnet of the up path."""
        return sum(len(block.resnets) for block in self.up_blocks)  # type: ignore[arg-type]

    def _may_share(self, timestep: Tensor | float | int | Waves, perturbed: Perturbed | None) -> bool:
        """Whether texts that belong to one sample may share what comes before the first of them is attended to.

        Not where anything tells them apart earlier, nor where somebody looks on and expects a row for each.
        """
        times = len(timestep.values) if isinstance(timestep, Waves) else torch.as_tensor(timestep).numel()
        if self.add_embedding is not None or times != 1:
            return False
        layers = [layer for _, layer in attention_layers(self)]
        if any(isinstance(layer.backend, CustomProcessor) for layer in layers):
            return False
        if perturbed is not None and perturbed.layers & {*layers[:1]}:  # the one before the text
            return False
        first = self.conv_in, *(self.down_blocks[0].modules() if len(self.down_blocks) else ())
        return not any(module._forward_hooks or module._forward_pre_hooks for module in first)
